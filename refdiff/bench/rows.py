"""What can be measured: a record for each kind of row, how the command line spells rows, and which are the default."""

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
    """Rows of one kind.

    form: what follows the name on the command line. title: what a table names it. measuring: see `measurements.py`.
    unit: of the rate; of s and B, the number itself. ceiling: the limit of the machine that work is compared with,
    gemv (bytes a second) or sgemm (operations a second). peers: which sides there can be beside refdiff. needs_model:
    the checkpoint; training makes its own, and others have none. new_process: for each repetition. warm_up: the first
    repetition does not count; it reads the files from disk. memory: the title of a second row, of peak memory.
    """

    form: str
    title: str
    measuring: Callable[[Side, Row], Iterator[Answer]]
    unit: str = "tok/s"
    ceiling: str = ""
    peers: tuple[str, ...] = ("transformers", "stored")
    needs_model: bool = True
    new_process: bool = False
    warm_up: bool = False
    memory: str = ""


_PRODUCT = Kind(_ONE, "product, {tokens}", m.product, "GB/s", ceiling="gemv",
                peers=("transformers", "onnxruntime", "numpy"), needs_model=False)  # fmt: skip
_JUDGED = Kind(_MANY, "{name} {size}, {heads}", m.judge, "s", peers=(), needs_model=False, new_process=True,
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
    "check": _JUDGED,
    "diagnose": _JUDGED,
    "train": Kind("MODEL", "training step, {model}", m.train, ceiling="sgemm", peers=_TRANSFORMERS, needs_model=False,
                  memory="training memory, {model}"),
}  # fmt: skip
LARGE_PRODUCT = replace(_PRODUCT, unit="GFLOP/s", ceiling="sgemm")
"""Products of more than `FEW` tokens, whose cost is not to read the weight but to multiply."""

ORACLE_KINDS = tuple(m.JUDGED)

_NUMBER = "[1-9][0-9]{0,5}"
_FORMS = {
    "": "",
    _ONE: f":(?P<size>{_NUMBER})",
    _MANY: f":(?P<size>{_NUMBER})(x(?P<batch>{_NUMBER}))?",
    "MODEL": f":(?P<model>{'|'.join(TRAINED)})",
}


@dataclass(frozen=True)
class Row:
    """One row: `size` counts tokens, or 0 where none are; `batch` sequences or heads; `model` is what is trained."""

    name: str
    size: int = 0
    batch: int = 1
    model: str = ""

    @property
    def kind(self) -> Kind:
        return LARGE_PRODUCT if self.name == "product" and self.size > m.FEW else KINDS[self.name]

    @property
    def spelled(self) -> str:
        """How the command line spells it."""
        size = self.model or (str(self.size) if self.size else "")
        return self.name + (f":{size}" if size else "") + (f"x{self.batch}" if self.batch > 1 else "")

    def titled(self, title: str) -> str:
        """Fill in a title of its kind."""
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
        """How a table names it."""
        return self.titled(self.kind.title)


def parse_rows(text: str) -> list[Row]:
    """Read `prefill:512,decode:128x8,load`; raise `ValueError` for a row that there is not."""
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
"""What is measured where nothing is said."""

QUICK = parse_rows("cold,load,prefill:32,decode:32,decode:32x3,lookup,edit,memory:32,product:1,product:8")
TRAIN = parse_rows("train:3m,train:30m")
QUICK_TRAIN = parse_rows("train:tiny")
"""What `--quick`, `--train` and both measure."""
