"""Measure rows: which process gets which request, in which order, and how the answers compare."""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refdiff.bench import machine, sizes
from refdiff.bench.device import CEILINGS, SIXTEEN_BITS
from refdiff.bench.model_side import LOOKED_UP
from refdiff.bench.processes import Child, ChildError, first_output
from refdiff.bench.rows import OF_ORACLE, POSSIBLE, WEIGHT, Row, Work, work_of
from refdiff.bench.side import Settings
from refdiff.errors import CheckpointError
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.heads import DiffLlamaForCausalLM
from refdiff.model.weights.names import count_parameters, parameter_shapes

OURS = "refdiff"
ONLY = {
    "numpy": ("product",),
    "onnxruntime": ("product",),
    "stored": ("load", "prefill", "decode", "lookup", "edit", "memory"),
}
"""Which kinds of rows a side takes part in, where it is not all of them."""

DECODED_FOR_MEMORY = 16
LOOKUP_PROMPT = 256
ENDING = ("cold", "load", "memory", *OF_ORACLE)
"""Rows whose processes end with them; they come before those whose processes stay and hold a model each."""

Answer = dict[str, Any]
Request = Callable[[], Answer]


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    folder: the checkpoint, or None where no row needs one. against: the sides beside refdiff. pairs: rounds that
    count. steps: tokens decoded at a time. looked_up: tokens of prompt lookup after the first. least: seconds that
    products and ceilings are repeated. rest: seconds before each side's turn, so that the threads of the one before it
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


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median of at least one number, and how far they reach."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def interleave(
    requests: Mapping[str, Request],
    rounds: int,
    before: Callable[[str], None] = lambda name: None,
    last: Callable[[], None] = lambda: None,
) -> dict[str, list[Answer]]:
    """Send each side its request once a round, in reverse order every other round, so that none is always the first.

    `before` hears whose turn it is, and `last` is called at the end of each round. Returns name → its answers.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in requests}
    names = list(requests)
    for _ in range(rounds):
        for name in names:
            before(name)
            answers[name].append(requests[name]())
        names.reverse()
        last()
    return answers


def difference(ours: Answer, theirs: Answer) -> str | None:
    """Say where two answers show that the sides did not do the same, or return None.

    Tokens and texts must be equal; sums of many products, and losses, to a thousandth, being rounded in another order.
    """
    if "tokens" in ours:
        a, b = (
            [row if isinstance(row, list) else [row] for row in tokens] for tokens in (ours["tokens"], theirs["tokens"])
        )
        for row, (mine, other) in enumerate(zip(a, b, strict=True)):
            for i, (x, y) in enumerate(zip(mine, other, strict=True)):
                if x != y:
                    return f"token {i} of row {row} is {x} here and {y} there"
    if "text" in ours and ours["text"] != theirs["text"]:
        return f"the text is {ours['text']!r} here and {theirs['text']!r} there"
    for key, name in (("loss", "the loss"), ("sample", "a result")):
        if key in ours:
            mine, other = (one[key] if isinstance(one[key], list) else [one[key]] for one in (ours, theirs))
            scale = max(map(abs, other))
            for x, y in zip(mine, other, strict=True):
                if not abs(x - y) <= 1e-3 * scale:  # where one is no number, too
                    return f"{name} is {x:.6g} here and {y:.6g} there"
    return None


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
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    rounded: bool = False
    error: str | None = None

    @property
    def title(self) -> str:
        """How a table names it."""
        if self.work.unit != "B" or self.row.kind not in ("train", *OF_ORACLE):
            return self.row.title
        if self.row.kind == "train":
            return f"training memory, {self.row.model}"
        return f"memory of {self.row.kind}, {self.row.size} × {self.row.batch}"

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
            sides[name] = {key: values, "rate": spread([self.work.rate(v) for v in values])}
            for extra in ("own_bytes", "passes"):
                if found := [a[extra] for a in self.answers[name] if a.get(extra)]:
                    sides[name][extra] = found
        against = {}
        for name in numbers.keys() - {OURS}:
            over, under = (name, OURS) if key == "seconds" else (OURS, name)
            ratios = [a / b for a, b in zip(numbers[over], numbers[under], strict=True)]  # of neighbours in time
            compared = [] if self.rounded else map(difference, self.answers[OURS], self.answers[name])
            against[name] = {"ratio": spread(ratios), "difference": next((d for d in compared if d), None)}
        return {
            "row": self.row.spelled,
            "title": self.title,
            "unit": self.work.unit,
            "sides": sides,
            "against": {name: against[name] for name in numbers if name in against},
            "ceiling": self._ceiling(numbers) if self.rates and numbers else None,
            "error": self.error,
        }

    def _ceiling(self, numbers: dict[str, list[float]]) -> dict[str, Any]:
        """Compare each side's work with what the machine could do meanwhile."""
        rates, reads = ([max(around) for around in itertools.pairwise(found)] for found in (self.rates, self.reads))
        most = [max(both) for both in zip(rates, reads, strict=True)] if reads else rates
        counted = {
            name: self.work.counted(answers[0].get("itemsize"), answers[0].get("sparing", False))
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


class Measurer:
    """Measures rows one after the other, keeping the processes that several of them use; `close` ends these."""

    def __init__(self, options: BenchOptions, turn: Callable[[Row, str], None] = lambda row, side: None) -> None:
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
        if row.kind in OF_ORACLE:
            return [OURS]
        return [OURS, *(name for name in self.options.against if row.kind in ONLY.get(name, (row.kind,)))]

    def check(self) -> None:
        """Start every side once, so that what is not installed is said before an hour of measuring.

        Raises:
            UnavailableError: a side cannot be measured here.
        """
        for name in (OURS, *self.options.against):
            self._child(name)

    def measure(self, row: Row) -> list[Measured]:
        """Measure one row; one of training or of the oracle gives its memory as a second one."""
        if row.kind in OF_ORACLE:
            return self._oracle(row)
        if row.kind == "train":
            with tempfile.TemporaryDirectory(prefix="refdiff-bench-") as folder:
                return self._train(row, folder)
        requests, warm = {}, {}
        for name in self.sides_of(row):
            match row.kind:
                case "cold":
                    requests[name] = warm[name] = self._command(name)
                case "load":  # the file is in the system's cache after the first time
                    requests[name] = warm[name] = functools.partial(self._new, name, "open")
                case "memory":
                    what = {"size": row.size, "batch": row.batch, "steps": DECODED_FOR_MEMORY}
                    requests[name] = functools.partial(self._new, name, "memory", **what)
                case _:
                    requests[name], warm[name] = self._kept(row, name)
        interleave(warm, 1)
        return [self._rounds(row, self._work(row, self.config), requests)]

    def _rounds(self, row: Row, work: Work, requests: dict[str, Request]) -> Measured:
        kinds = ["gemv", "read"] if work.ceiling == "gemv" else [work.ceiling] if work.ceiling else []
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        least = {} if self.options.settings.backend == "cupy" else {"least": self.options.least}

        def before(side: str) -> None:
            self._turn(row, side)
            time.sleep(self.options.rest)

        def ceiling() -> None:
            for kind, found in rates.items():
                before("ceilings")
                found.append(self._child("ceilings").request(kind, **least)["rate"])

        ceiling()
        answers = interleave(requests, self.options.pairs, before, ceiling)
        rounded = self.options.settings.dtype in SIXTEEN_BITS
        return Measured(row, work, answers, rates.get(work.ceiling, []), rates.get("read", []), rounded)

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

    def _new(self, name: str, do: str, **what: Any) -> Answer:
        """Send one request to a new process."""
        with Child(name, self.options.settings) as child:
            return child.request(do, **what)

    def _kept(self, row: Row, name: str) -> tuple[Request, Request]:
        """Return the request to a process that stays, and one before it that is not counted."""
        o, child = self.options, self._child(name)

        def request(do: str, **what: Any) -> Request:
            return functools.partial(child.request, do, **what)

        rows = {"size": row.size, "batch": row.batch}
        if row.kind != "product" and name not in self._opened:
            request("open")()
            self._opened.add(name)
        match row.kind:
            case "product":
                shape = {"outputs": WEIGHT[0], "inputs": WEIGHT[1], "size": row.size}
                return (product := request("product", **shape, least=o.least)), product
            case "prefill":
                return request("prefill", **rows), request("prefill", **{**rows, "size": min(row.size, 128)})
            case "decode":
                rows["capacity"] = o.steps
                return request("decode", **rows, steps=o.steps), request("decode", **rows, steps=1)
            case _:
                what = {"size": LOOKUP_PROMPT, "edit": row.kind == "edit"}
                few = min(o.looked_up, 2 * LOOKED_UP)
                return request("lookup", **what, steps=o.looked_up), request("lookup", **what, steps=few)

    def _command(self, name: str) -> Request:
        """Run what a user would: the command here, a script of a few lines there."""
        s, folder = self.options.settings, str(self.options.folder)
        prompt = sixteen_tokens(folder)
        if name == OURS:
            command = ["-m", "refdiff", "generate", "-m", folder, "-p", prompt, "-n", "1", "--temp", "0", "-q"]
            command += ["--threads", str(s.threads), "--dtype", s.dtype, "--offline", "--backend", s.backend]
            command += ["--weights", "stored" if s.dtype in SIXTEEN_BITS else "expanded"]
        else:
            from refdiff.bench.peers import WHAT_ONE_WOULD_WRITE, device_of

            command = ["-c", WHAT_ONE_WOULD_WRITE, folder, prompt, s.dtype, device_of(s)]

        def request() -> Answer:
            seconds, text = first_output([sys.executable, *command], s.threads)
            return {"seconds": seconds, "text": text.strip()}

        return request

    def _oracle(self, row: Row) -> list[Measured]:
        """Measure in a new process each time, whose memory is that of this one answer."""
        seconds, peaks = [], []
        for _ in range(self.options.pairs):
            self._turn(row, OURS)
            with Child("oracle", self.options.settings) as child:
                seconds.append(child.request(row.kind, size=row.size, heads=row.batch))
                peaks.append(child.request("peak"))
        return [Measured(row, Work("s"), {OURS: seconds}), Measured(row, Work("B"), {OURS: peaks})]

    def _train(self, row: Row, folder: str) -> list[Measured]:
        """Measure steps in processes that do nothing else, so that their memory is that of training."""
        o, config = self.options, sizes.trained_config(row.model)
        DiffLlamaForCausalLM.from_config(config).save_pretrained(folder)
        what = {"folder": folder, "batch": o.batch, "context": o.context, "vocab_size": config.vocab_size}
        with ExitStack() as ends:
            children = {name: ends.enter_context(Child(name, o.settings)) for name in self.sides_of(row)}
            requests: dict[str, Request] = {
                n: functools.partial(child.request, "train", **what) for n, child in children.items()
            }
            interleave(requests, 1)
            speed = self._rounds(row, self._work(row, config), requests)
            peaks = {name: [child.request("peak")] for name, child in children.items()}
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


@contextmanager
def checkpoint(like: str | None, folder: str | None, dtype: str | None = None) -> Iterator[str | None]:
    """Give a folder with a checkpoint: the one named, or one like `like`, there or in a folder that is removed.

    `dtype` is what a new one is stored in; None is what the model that it is like is stored in.
    """
    with tempfile.TemporaryDirectory(prefix="refdiff-bench-") as made:
        if like is not None:
            folder = folder or made
            sizes.write_like(like, Path(folder), dtype)
        yield folder


def run(
    rows: list[Row], options: BenchOptions, turn: Callable[[Row, str], None] = lambda row, side: None
) -> Generator[Measured, None, None]:
    """Measure rows one after the other, those first whose processes end with them; `turn` hears whose turn it is.

    A row that fails says why in its `error`, and the next one is measured all the same.

    Raises:
        UnavailableError: a side's packages are not installed.
    """
    measurer = Measurer(options, turn)
    try:
        measurer.check()
        for row in sorted(rows, key=lambda row: row.kind not in ENDING):
            try:
                measured = measurer.measure(row)
            except (ChildError, CheckpointError, OSError, ValueError) as error:
                measurer.close()  # whichever process failed, none stays in an unknown state
                measured = [Measured(row, Work("s"), error=" ".join(str(error).split()))]
            yield from measured
    finally:
        measurer.close()


def in_order(results: list[Measured], rows: list[Row]) -> list[Measured]:
    """Bring results into the order of the rows."""
    return sorted(results, key=lambda measured: rows.index(measured.row))


def report(results: list[Measured], options: BenchOptions, *, model: dict[str, Any] | None) -> dict[str, Any]:
    """Make what `--json` writes: machine, model, how it was measured, and the rows, each with refdiff's commit."""
    commit, s = machine.commit(), options.settings
    return {
        "format": "refdiff bench 1",
        "machine": machine.describe(s.threads, s.backend),
        "model": model,
        "settings": {
            "dtype": s.dtype,
            "backend": s.backend,
            "pairs": options.pairs,
            "decoded_tokens": options.steps,
            "looked_up_tokens": options.looked_up,
            "training_batch": [options.batch, options.context],
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
