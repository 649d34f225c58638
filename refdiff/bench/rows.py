"""The kinds of row, their spelling on the command line, and the default rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from refdiff.bench import measurements as m
from refdiff.bench.side import Answer, Side
from refdiff.bench.sizes import TRAINED

_ONE, _MANY = "TOKENS", "TOKENS[xN]"
_TRANSFORMERS = ("transformers",)


@dataclass(frozen=True)
class Kind:
    """A kind of row.

    form: what follows the name on the command line.
    title: the name in tables.
    measure: the procedure (`measurements.py`).
    unit: of the rate; with s or B, time or memory itself is shown.
    ceiling: the machine's limit for `work`, gemv (bytes per second) or sgemm (operations per second).
    peers: the possible sides beside refdiff.
    needs_model: whether it reads the checkpoint. Training creates its own; products and the oracle need none.
    new_process: whether each repetition has a process of its own.
    warm_up: whether the first repetition, which reads the files from disk, does not count.
    memory: the title of a second row, of peak memory; empty for none.
    """

    form: str
    title: str
    measure: Callable[[Side, Row], Iterator[Answer]]
    unit: str = "tok/s"
    ceiling: str = ""
    peers: tuple[str, ...] = ("transformers", "stored")
    needs_model: bool = True
    new_process: bool = False
    warm_up: bool = False
    memory: str = ""


_PRODUCT = Kind(_ONE, "product, {tokens}", m.product, "GB/s", ceiling="gemv",
                peers=("transformers", "onnxruntime", "numpy"), needs_model=False)  # fmt: skip
_ORACLE = Kind(_MANY, "{name} {size}, {heads}", m.run_oracle, "s", peers=(), needs_model=False, new_process=True,
               memory="memory of {name}, {size} × {batch}")  # fmt: skip

KINDS = {
    "cold": Kind("", "start to first token", m.cold, "s", peers=_TRANSFORMERS),
    "load": Kind("", "load", m.load, "s", new_process=True, warm_up=True),
    "prefill": Kind(_MANY, "prefill {size}{rows}", m.prefill, ceiling="sgemm"),
    "decode": Kind(_MANY, "decode {size}{rows}", m.decode, ceiling="gemv"),
    "lookup": Kind("", "prompt lookup, a copy", m.look_up),
    "edit": Kind("", "prompt lookup, an edit", m.look_up),
    "memory": Kind(_MANY, "memory {size}{rows}", m.memory, "B", new_process=True),
    "product": _PRODUCT,
    "check": _ORACLE,
    "diagnose": _ORACLE,
    "train": Kind("MODEL", "training step, {model}", m.train, ceiling="sgemm", peers=_TRANSFORMERS, needs_model=False,
                  memory="training memory, {model}"),
}  # fmt: skip
LARGE_PRODUCT = replace(_PRODUCT, unit="GFLOP/s", ceiling="sgemm")
"""Products of more than `MEMORY_BOUND_TOKENS` tokens, which are bound by arithmetic."""

ORACLE_KINDS = tuple(m.ORACLE_RUNS)

_NUMBER = "[1-9][0-9]{0,5}"
_FORMS = {
    "": "",
    _ONE: f":(?P<size>{_NUMBER})",
    _MANY: f":(?P<size>{_NUMBER})(x(?P<batch>{_NUMBER}))?",
    "MODEL": f":(?P<model>{'|'.join(TRAINED)})",
}


@dataclass(frozen=True)
class Row:
    """A row to measure.

    size: number of tokens, 0 for kinds without.
    batch: number of sequences, or of head pairs for the oracle.
    model: name of the model to train.
    """

    name: str
    size: int = 0
    batch: int = 1
    model: str = ""

    @property
    def kind(self) -> Kind:
        return LARGE_PRODUCT if self.name == "product" and self.size > m.MEMORY_BOUND_TOKENS else KINDS[self.name]

    @property
    def spelled(self) -> str:
        """The row as the command line spells it."""
        size = self.model or (str(self.size) if self.size else "")
        return self.name + (f":{size}" if size else "") + (f"x{self.batch}" if self.batch > 1 else "")

    def format_title(self, title: str) -> str:
        """Fill this row's values into a title of its kind."""
        return title.format(
            name=self.name,
            size=self.size,
            batch=self.batch,
            model=self.model,
            rows=f", {self.batch} rows" if self.batch > 1 else "",
            tokens=f"{self.size} token{'s' * (self.size > 1)}",
            heads=f"{self.batch} head{'s' * (self.batch > 1)}",
        )

    @property
    def title(self) -> str:
        """The row's name in tables."""
        return self.format_title(self.kind.title)


def parse_rows(text: str) -> list[Row]:
    """Read `prefill:512,decode:128x8,load`; raise `ValueError` for an unknown row."""
    return list(dict.fromkeys(_parse(part.strip()) for part in text.split(",")))


def _parse(part: str) -> Row:
    name, colon, rest = part.partition(":")
    if name not in KINDS:
        raise ValueError(f"got {part!r}, expected {', '.join(KINDS)}, as in decode:128x8")
    form = KINDS[name].form
    if (match := re.fullmatch(_FORMS[form], colon + rest)) is None:
        spelled = f"{name}:{form}" if form else name
        example = {"": "", "MODEL": f"; MODEL is {' or '.join(TRAINED)}"}.get(form, f", as in {name}:128")
        raise ValueError(f"got {part!r}, expected {spelled}{example}")
    found = match.groupdict()
    return Row(name, int(found.get("size") or 0), int(found.get("batch") or 1), found.get("model") or "")


ALL = parse_rows(
    "cold,load,prefill:128,prefill:512,prefill:2048,prefill:8192,decode:128,decode:2048,decode:8192,"
    "decode:128x2,decode:128x4,decode:128x8,decode:128x16,lookup,edit,memory:128,memory:2048,memory:8192,"
    "memory:128x4,memory:128x16,product:1,product:2,product:4,product:8,product:16,product:128,product:512"
)
"""The rows measured without --rows."""

QUICK = parse_rows("cold,load,prefill:32,decode:32,decode:32x3,lookup,edit,memory:32,product:1,product:8")
TRAIN = parse_rows("train:3m,train:30m")
QUICK_TRAIN = parse_rows("train:tiny")
"""The rows measured with --quick, --train and both."""
