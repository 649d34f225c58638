"""One row: who is asked what, in which process, and what the answers say of each other."""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refdiff.bench import pairs
from refdiff.bench.children import Child, first_output
from refdiff.bench.gpu import CEILINGS, SIXTEEN_BITS
from refdiff.bench.model_side import LOOKED_UP
from refdiff.bench.rows import Row
from refdiff.bench.side import Settings
from refdiff.bench.work import POSSIBLE, WEIGHT, Work, work_of
from refdiff.model.config import DiffLlamaConfig

OURS = "refdiff"
ONLY = {
    "numpy": ("product",),
    "onnxruntime": ("product",),
    "stored": ("load", "prefill", "decode", "lookup", "edit", "memory"),
}
"""Which kinds of rows a side takes part in, where it is not all of them."""

DECODED_FOR_MEMORY = 16
LOOKUP_PROMPT = 256


@dataclass(frozen=True)
class Options:
    """How to measure.

    folder: the checkpoint, or None where no row needs one. against: the sides beside refdiff. pairs: rounds that
    count. steps: tokens decoded at a time. looked_up: tokens of prompt lookup after the first. least: seconds that
    products and ceilings go on for. rest: seconds before each side's turn, so that the threads of the one before it
    fall asleep. batch and context: of a training step.
    """

    folder: str | None = None
    against: tuple[str, ...] = ()
    pairs: int = 5
    steps: int = 16
    looked_up: int = 128
    least: float = 0.3
    rest: float = 0.3
    batch: int = 16
    context: int = 256
    settings: Settings = field(default_factory=Settings)


@dataclass
class Measured:
    """One row's answers, as JSON has them under `rows`.

    `sides`: name → what each round gave, in seconds or bytes, and as a rate; of prompt lookup also in how many passes
    through the model. `against`: name → the ratio (above 1: refdiff is faster; of memory, below 1: it needs less), and
    where the two did not do the same. `ceiling`: the machine's rate in each round, the better of that before it and
    that after it (of the attribute `rates`, one more than there are rounds), the bytes or operations of each side that
    are `counted`, the share of the rate that it reached with them, and which sides are `doubtful`, having done more
    than there can be: than the rate, or where that is `gemv` than `read`, of the attribute `reads`, or the rate if that
    was more. `rounded`: the sides round to 16 bits, each in other places, so that their tokens may differ. `error`: why
    there is nothing.
    """

    row: Row
    work: Work
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    rounded: bool = False
    error: str | None = None

    @property
    def title(self) -> str:
        """How a table names it."""
        memory = self.row.kind == "train" and self.work.unit == "B"
        return f"training memory, {self.row.model}" if memory else self.row.title

    @property
    def failed(self) -> bool:
        """Whether it could not be measured, or the sides did different things."""
        return self.error is not None or any(entry["difference"] for entry in self.to_dict()["against"].values())

    def to_dict(self) -> dict[str, Any]:
        """Evaluate the answers."""
        key = "bytes" if self.work.unit == "B" else "seconds"
        numbers = {name: [a[key] for a in answers] for name, answers in self.answers.items()}
        sides: dict[str, Any] = {}
        for name, values in numbers.items():
            sides[name] = {key: values, "rate": pairs.Spread.of([self.work.rate(v) for v in values]).to_dict()}
            for extra in ("own_bytes", "passes"):
                found = [a[extra] for a in self.answers[name] if a.get(extra)]
                if found:
                    sides[name][extra] = found
        against = {}
        for name, values in numbers.items():
            if name == OURS:
                continue
            over, under = (values, numbers[OURS]) if key == "seconds" else (numbers[OURS], values)
            compared = [] if self.rounded else map(pairs.difference, self.answers[OURS], self.answers[name])
            against[name] = {
                "ratio": pairs.ratios(over, under).to_dict(),
                "difference": next((found for found in compared if found), None),
            }
        return {
            "row": self.row.spelled,
            "title": self.title,
            "unit": self.work.unit,
            "sides": sides,
            "against": against,
            "ceiling": self._ceiling(numbers) if self.rates and numbers else None,
            "error": self.error,
        }

    def _ceiling(self, numbers: dict[str, list[float]]) -> dict[str, Any]:
        """Hold each side's work against what the machine could do meanwhile."""
        rates, reads = ([max(around) for around in itertools.pairwise(found)] for found in (self.rates, self.reads))
        most = [max(both) for both in zip(rates, reads, strict=True)] if reads else rates
        counted = {
            name: self.work.counted(answers[0].get("itemsize"), answers[0].get("sparing", False))
            for name, answers in self.answers.items()
        }

        def share(name: str, of: list[float]) -> pairs.Spread:
            return pairs.Spread.of(
                [counted[name] / value / rate for value, rate in zip(numbers[name], of, strict=True)]
            )

        return {
            "kind": self.work.ceiling,
            "rates": rates,
            **({"read": most} if reads else {}),
            "counted": counted,
            "share": {name: share(name, rates).to_dict() for name in numbers},
            "doubtful": [name for name in numbers if share(name, most).median > POSSIBLE],
        }


class Measurer:
    """Measures rows one after the other, keeping the processes that several of them use; `close` ends these."""

    def __init__(self, options: Options, turn: Callable[[Row, str], None] = lambda row, side: None) -> None:
        self.options = options
        self._turn = turn
        self._children: dict[str, Child] = {}
        self._opened: set[str] = set()
        self.config = None if options.folder is None else DiffLlamaConfig.from_pretrained(options.folder)

    def close(self) -> None:
        """End all processes."""
        for child in self._children.values():
            child.close()
        self._children.clear()
        self._opened.clear()

    def sides_of(self, row: Row) -> list[str]:
        """Name who takes part in a row."""
        return [OURS, *(name for name in self.options.against if row.kind in ONLY.get(name, (row.kind,)))]

    def check(self) -> None:
        """Start every side once, so that what is not installed is said before an hour of measuring.

        Raises:
            UnavailableError: a side cannot be measured here.
        """
        for name in (OURS, *self.options.against):
            self._child(name)

    def measure(self, row: Row, training: Path | None = None) -> list[Measured]:
        """Measure one row; a training row, of the model in the folder `training`, gives its memory as a second one."""
        if row.kind == "train":
            return self._train(row, training)
        work = self._work(row, self.config)
        single = {"cold": self._cold, "load": self._fresh, "memory": self._fresh}.get(row.kind, self._kept)
        asks, warm = {}, {}
        for name in self.sides_of(row):
            asks[name], warm[name] = single(row, name)
        pairs.interleave(warm, 1)
        return [self._rounds(row, work, asks)]

    def _rounds(self, row: Row, work: Work, asks: dict[str, Callable[[], Any]]) -> Measured:
        kinds = ["gemv", "read"] if work.ceiling == "gemv" else [work.ceiling] if work.ceiling else []
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}

        def ceiling() -> None:
            for kind, found in rates.items():
                self._before(row, "ceilings")
                found.append(self._ceiling(kind))

        ceiling()
        answers = pairs.interleave(asks, self.options.pairs, functools.partial(self._before, row), ceiling)
        rounded = self.options.settings.dtype in SIXTEEN_BITS
        return Measured(row, work, answers, rates.get(work.ceiling, []), rates.get("read", []), rounded)

    def _ceiling(self, kind: str) -> float:
        least = {} if self.options.settings.backend == "cupy" else {"least": self.options.least}
        rate: float = self._child("ceilings").ask(kind, **least)["rate"]
        return rate

    def _before(self, row: Row, side: str) -> None:
        self._turn(row, side)
        time.sleep(self.options.rest)

    def _work(self, row: Row, config: DiffLlamaConfig | None) -> Work:
        o = self.options
        itemsize = 8 if o.settings.dtype == "float64" else 4
        matrices = 2 if o.settings.dtype in SIXTEEN_BITS else itemsize
        shape = {"batch": o.batch, "context": o.context}
        steps = o.looked_up if row.kind in ("lookup", "edit") else o.steps
        work = work_of(row, config, steps=steps, itemsize=itemsize, matrices=matrices, **shape)
        return work if o.settings.backend == "numpy" else replace(work, ceiling=CEILINGS[work.ceiling])

    def _child(self, name: str) -> Child:
        if name not in self._children:
            self._children[name] = Child(name, self.options.settings)
        return self._children[name]

    def _kept(self, row: Row, name: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """What to ask a process that stays, and what to ask it before that, not counted."""
        o, child = self.options, self._child(name)
        if row.kind == "product":
            shape = {"outputs": WEIGHT[0], "inputs": WEIGHT[1], "size": row.size}
            ask = functools.partial(child.ask, "product", **shape, least=o.least)
            return ask, ask
        if name not in self._opened:
            child.ask("open")
            self._opened.add(name)
        rows = {"size": row.size, "batch": row.batch}
        match row.kind:
            case "prefill":
                less = {**rows, "size": min(row.size, 128)}
                return lambda: child.ask("prefill", **rows), lambda: child.ask("prefill", **less)
            case "decode":
                rows["room"] = o.steps
                return lambda: child.ask("decode", **rows, steps=o.steps), lambda: child.ask("decode", **rows, steps=1)
            case _:
                what = {"size": LOOKUP_PROMPT, "edit": row.kind == "edit"}
                return (
                    lambda: child.ask("lookup", **what, steps=o.looked_up),
                    lambda: child.ask("lookup", **what, steps=min(o.looked_up, 2 * LOOKED_UP)),
                )

    def _fresh(self, row: Row, name: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """What to ask a process that is started for it; the file is in the system's cache after the first time."""

        def ask() -> dict[str, Any]:
            with Child(name, self.options.settings) as child:
                if row.kind == "load":
                    return child.ask("open")
                return child.ask("memory", size=row.size, batch=row.batch, steps=DECODED_FOR_MEMORY)

        return ask, (ask if row.kind == "load" else dict)

    def _cold(self, row: Row, name: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Run what a user would: the command here, a script of a few lines there."""
        s, folder = self.options.settings, str(self.options.folder)
        prompt = sixteen_tokens(folder)
        if name == OURS:
            command = ["-m", "refdiff", "generate", "-m", folder, "-p", prompt, "-n", "1", "--temp", "0", "-q"]
            command += ["--threads", str(s.threads), "--dtype", s.dtype, "--offline", "--backend", s.backend]
            command += ["--weights", "stored" if s.dtype in SIXTEEN_BITS else "expanded"]
        else:
            from refdiff.bench.transformers_side import WHAT_ONE_WOULD_WRITE, device_of

            command = ["-c", WHAT_ONE_WOULD_WRITE, folder, prompt, s.dtype, device_of(s)]

        def ask() -> dict[str, Any]:
            seconds, text = first_output([sys.executable, *command], s.threads)
            return {"seconds": seconds, "text": text.strip()}

        return ask, ask

    def _train(self, row: Row, folder: Path | None) -> list[Measured]:
        """Measure steps in processes that do nothing else, so that their memory is that of training."""
        o = self.options
        config = DiffLlamaConfig.from_pretrained(str(folder))
        what = {"folder": str(folder), "batch": o.batch, "context": o.context, "vocab_size": config.vocab_size}
        children: dict[str, Child] = {}
        try:
            for name in self.sides_of(row):
                children[name] = Child(name, o.settings)
            asks: dict[str, Callable[[], Any]] = {
                name: functools.partial(child.ask, "train", **what) for name, child in children.items()
            }
            pairs.interleave(asks, 1)
            speed = self._rounds(row, self._work(row, config), asks)
            peaks = {name: [child.ask("peak")] for name, child in children.items()}
        finally:
            for child in children.values():
                child.close()
        return [speed, Measured(row, Work("B"), peaks)]


def sixteen_tokens(folder: str) -> str:
    """Return the beginning of a sentence that is at most 16 tokens long.

    Raises:
        CheckpointError: the checkpoint has no tokenizer.
    """
    from refdiff.generation.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(folder)
    text = "Once upon a time there was a king who had three sons, and the youngest of them"
    while len(tokenizer.encode(text)) > 16 and len(text) > 1:
        text = text[:-1]
    return text.rstrip()
