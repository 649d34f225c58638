"""Measure rows: which process gets which request, in which order, and how the answers compare."""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.bench import machine
from refdiff.bench.machine import SIXTEEN_BITS
from refdiff.bench.processes import Child, ChildError, first_output
from refdiff.bench.rows import KINDS, ORACLE_KINDS, Row, Work, work_of
from refdiff.bench.side import Answer, Settings
from refdiff.bench.sizes import trained_config, write_like
from refdiff.errors import CheckpointError
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.heads import DiffLlamaForCausalLM
from refdiff.model.weights.names import count_parameters, parameter_shapes

OURS = "refdiff"
POSSIBLE = 1.05
"""A share of a ceiling above which one of the two was not measured as it is: no more than the spread of both."""

Turn = Callable[[Row, str], None]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median of at least one number, and how far they reach."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def difference(ours: Answer, theirs: Answer) -> str | None:
    """Say where two answers show that the sides did not do the same, or return None.

    Tokens and texts must be equal; sums of many products, and losses, to a thousandth, being rounded in another order.
    """
    if "tokens" in ours:
        here, there = (np.reshape(one["tokens"], (len(one["tokens"]), -1)) for one in (ours, theirs))
        if here.shape != there.shape:
            return f"there are {here.shape} tokens here and {there.shape} there"
        for row, i in np.argwhere(here != there)[:1]:
            return f"token {i} of row {row} is {here[row, i]} here and {there[row, i]} there"
    if "text" in ours and ours["text"] != theirs["text"]:
        return f"the text is {ours['text']!r} here and {theirs['text']!r} there"
    for key, name in (("loss", "the loss"), ("sample", "a result")):
        mine, other = (np.atleast_1d(one.get(key, [])) for one in (ours, theirs))
        for x, y in zip(mine, other, strict=True):
            if not abs(x - y) <= 1e-3 * abs(other).max():  # where one is no number, too
                return f"{name} is {x:.6g} here and {y:.6g} there"
    return None


@dataclass
class Measured:
    """One row's answers by side, the ceilings around them, and what JSON has of them under `rows`.

    rates, reads: the ceiling of the row, and where that is `gemv` also `read`, before each round and after the last.
    rounded: the sides round to 16 bits, each in other places, so that their tokens may differ. error: why there is
    nothing. In JSON, a ratio above 1 says that refdiff is faster; of memory, below 1, that it needs less.
    """

    row: Row
    work: Work
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    rounded: bool = False
    error: str | None = None

    @property
    def title(self) -> str:
        """How a table names it."""
        if self.work.unit != "B" or self.row.kind == "memory":
            return self.row.title
        of = f"of {self.row.kind}, {self.row.size} × {self.row.batch}"
        return f"training memory, {self.row.model}" if self.row.kind == "train" else f"memory {of}"

    @property
    def failed(self) -> bool:
        """Whether it could not be measured, or the sides did different things."""
        return self.error is not None or any(entry["difference"] for entry in self.to_dict()["against"].values())

    def to_dict(self) -> dict[str, Any]:
        """Evaluate the answers."""
        key, extra = ("bytes", "own_bytes") if self.work.unit == "B" else ("seconds", "passes")
        numbers = {name: [a[key] for a in answers] for name, answers in self.answers.items()}
        sides: dict[str, Any] = {}
        for name, values in numbers.items():
            sides[name] = {key: values, "rate": spread([self.work.rate(v) for v in values])}
            if found := [a[extra] for a in self.answers[name] if a.get(extra)]:
                sides[name][extra] = found
        against = {}
        for name in (name for name in numbers if name != OURS):
            over, under = (name, OURS) if key == "seconds" else (OURS, name)
            ratios = [a / b for a, b in zip(numbers[over], numbers[under], strict=True)]  # of neighbours in time
            compared = [] if self.rounded else map(difference, self.answers[OURS], self.answers[name])
            against[name] = {"ratio": spread(ratios), "difference": next((d for d in compared if d), None)}
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
        """Compare each side's work with what the machine could do meanwhile: the better of before a round and after it.

        A side is doubtful that did more than there can be, by the better of `read` and the row's ceiling.
        """
        rates, reads = ([max(around) for around in itertools.pairwise(found)] for found in (self.rates, self.reads))
        most = [max(both) for both in zip(rates, reads, strict=True)] if reads else rates
        counted = {
            name: self.work.counted(answers[0].get("itemsize", 0), answers[0].get("sparing", False))
            for name, answers in self.answers.items()
        }

        def share(name: str, of: list[float]) -> dict[str, float]:
            return spread([counted[name] / value / rate for value, rate in zip(numbers[name], of, strict=True)])

        return {
            "kind": self.work.ceiling,
            "rates": rates,
            **({"read": most} if reads else {}),
            "counted": counted,
            "share": {name: share(name, rates) for name in numbers},
            "doubtful": [name for name in numbers if share(name, most)["median"] > POSSIBLE],
        }


def measure(row: Row, settings: Settings, turn: Turn = lambda row, side: None) -> list[Measured]:
    """Measure one row; one of training or of the oracle gives its memory as a second one.

    Sides answer in reverse order every other round, so that none is always the first; the machine's ceilings are
    measured before each round and after the last.
    """
    with ExitStack() as stack:
        config = None
        if row.kind == "train":
            config, folder = trained_config(row.model), stack.enter_context(_folder())
            DiffLlamaForCausalLM.from_config(config).save_pretrained(folder)
            settings = replace(settings, folder=folder)
        elif row.needs_model and settings.folder is not None:
            config = DiffLlamaConfig.from_pretrained(settings.folder)
        work = work_of(row, config, settings)
        kind = KINDS[row.kind]
        sides = [OURS, *(name for name in settings.against if name in kind.sides)]
        senders = {name: _sender(row, name, settings, stack) for name in sides}
        if (less := kind.warm_up) is not None:
            for send in senders.values():
                send(**{**row.request, **{name: min(row.request.get(name, most), most) for name, most in less.items()}})
        limits = [work.ceiling, "read"] if work.ceiling == "gemv" else [work.ceiling] if work.ceiling else []
        if limits:
            ceilings = stack.enter_context(Child("ceilings", settings)).request

        def ask(side: str, send: Callable[..., Answer], request: dict[str, Any]) -> Answer:
            turn(row, side)
            time.sleep(settings.rest)
            return send(**request)

        rates: dict[str, list[float]] = {limit: [] for limit in limits}
        answers: dict[str, list[Answer]] = {name: [] for name in senders}
        for i in range(settings.pairs + 1):
            for limit in limits:
                rates[limit].append(ask("ceilings", ceilings, {"do": limit})["rate"])
            for name in [*senders][:: -1 if i % 2 else 1] if i < settings.pairs else ():
                answers[name].append(ask(name, senders[name], row.request))
    rounded = settings.dtype in SIXTEEN_BITS
    measured = Measured(row, work, answers, rates.get(work.ceiling, []), rates.get("read", []), rounded)
    if row.kind == "train":  # the most that its process held until the last step
        answers = {name: found[-1:] for name, found in answers.items()}
    has_memory = row.kind in ("train", *ORACLE_KINDS)
    return [measured, Measured(row, Work("B"), answers)] if has_memory else [measured]


def _sender(row: Row, name: str, settings: Settings, stack: ExitStack) -> Callable[..., Answer]:
    """Return what a side's requests are sent to: a process that stays with the row, or a new one each time."""
    if row.kind == "cold":
        return _command(name, settings)
    if KINDS[row.kind].new_process:

        def send_to_new(**request: Any) -> Answer:
            with Child("oracle" if row.kind in ORACLE_KINDS else name, settings) as child:
                return child.request(**request)

        return send_to_new
    child = stack.enter_context(Child(name, settings))
    if row.needs_model:
        child.request("load")
    return child.request


def _command(name: str, s: Settings) -> Callable[..., Answer]:
    """Return a function that runs what a user would: the command here, a script of a few lines there."""
    folder = str(s.folder)
    prompt = sixteen_tokens(folder)
    if name == OURS:
        command = ["-m", "refdiff", "generate", "-m", folder, "-p", prompt, "-n", "1", "--temp", "0", "-q"]
        command += ["--threads", str(s.threads), "--dtype", s.dtype, "--offline", "--backend", s.backend]
        command += ["--weights", "stored" if s.dtype in SIXTEEN_BITS else "expanded"]
    else:
        from refdiff.bench.peers import WHAT_ONE_WOULD_WRITE, torch_device

        command = ["-c", WHAT_ONE_WOULD_WRITE, folder, prompt, s.dtype, torch_device(s)]

    def first_token(do: str) -> Answer:
        seconds, text = first_output([sys.executable, *command], s.threads)
        return {"seconds": seconds, "text": text.strip()}

    return first_token


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


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="refdiff-bench-")


@contextmanager
def checkpoint(like: str | None, folder: str | None, dtype: str | None = None) -> Iterator[str | None]:
    """Give a folder with a checkpoint: the one named, or one like `like`, there or in a folder that is removed.

    `dtype` is what a new one is stored in; None is what the model that it is like is stored in.
    """
    with _folder() as made:
        if like is not None:
            folder = folder or made
            write_like(like, Path(folder), dtype)
        yield folder


def run(rows: list[Row], settings: Settings, turn: Turn = lambda row, side: None) -> Iterator[Measured]:
    """Measure rows one after the other; `turn` hears whose turn it is.

    A row that fails says why in its `error`, and the next one is measured all the same.

    Raises:
        UnavailableError: a side's packages are not installed, which is said before an hour of measuring.
    """
    for name in (OURS, *settings.against):
        Child(name, settings).close()
    for row in rows:
        try:
            found = measure(row, settings, turn)
        except (ChildError, CheckpointError, OSError, ValueError) as error:
            found = [Measured(row, Work("s"), error=" ".join(str(error).split()))]
        yield from found


def report(results: list[Measured], settings: Settings, *, model: dict[str, Any] | None) -> dict[str, Any]:
    """Make what `--json` writes: machine, model, how it was measured, and the rows, each with refdiff's commit."""
    commit, s = machine.commit(), settings
    return {
        "format": "refdiff bench 1",
        "machine": machine.describe(s.threads, s.backend),
        "model": model,
        "settings": {
            "dtype": s.dtype,
            "backend": s.backend,
            "pairs": s.pairs,
            "decoded_tokens": s.steps,
            "looked_up_tokens": s.looked_up,
            "training_batch": [s.batch, s.context],
        },
        "rows": [{**measured.to_dict(), "commit": commit} for measured in results],
    }


def describe_model(like: str | None, folder: str | None, name: str | None) -> dict[str, Any] | None:
    """Say which model was measured: its name without folders, and how many parameters it has."""
    if folder is None:
        return None
    shapes = parameter_shapes(DiffLlamaConfig.from_pretrained(folder), "DiffLlamaForCausalLM")
    called = f"random weights in the dimensions of {like}" if like else Path(name or folder).name
    return {"name": called, "parameters": count_parameters(shapes.values())}
