"""What can be measured: the rows of the table, and how they are spelled on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from refdiff.bench.sizes import TRAINED

KINDS = {
    "cold": "process start to the first token of a 16-token prompt",
    "load": "opening the checkpoint, in a new process",
    "prefill": "reading a prompt of SIZE tokens, to the next one",
    "decode": "tokens one by one after SIZE tokens, xB rows at a time",
    "lookup": "a text that repeats itself, after its first token, with prompt_lookup_num_tokens",
    "edit": "the same with a program of which some names are changed",
    "memory": "most memory of a new process that reads SIZE tokens and decodes 16",
    "product": "one weight of 2048 × 8192 with SIZE tokens",
    "train": f"forward, backward and AdamW of a model of {' or '.join(TRAINED)}",
}
"""Kind of row → what is measured."""

_SIZED = ("prefill", "decode", "memory", "product")
_BATCHED = ("prefill", "decode", "memory")
_SPELLED = re.compile(r"([a-z]+)(?::(\w+?))?(?:x(\d+))?")


@dataclass(frozen=True)
class Row:
    """One row: `size` counts tokens, or 0 where none are; `model` names what is trained."""

    kind: str
    size: int = 0
    batch: int = 1
    model: str = ""

    @property
    def spelled(self) -> str:
        """How the command line spells it."""
        size = self.model or (str(self.size) if self.size else "")
        batch = f"x{self.batch}" if self.batch > 1 else ""
        return f"{self.kind}:{size}{batch}" if size else self.kind

    @property
    def title(self) -> str:
        """How a table names it."""
        rows = f", {self.batch} rows" if self.batch > 1 else ""
        match self.kind:
            case "cold":
                return "start to first token"
            case "lookup":
                return "prompt lookup, a copy"
            case "edit":
                return "prompt lookup, an edit"
            case "product":
                return f"product, {self.size} token{'s' * (self.size > 1)}"
            case "train":
                return f"training step, {self.model}"
            case _:
                return f"{self.kind} {self.size or ''}".rstrip() + rows

    @property
    def needs_model(self) -> bool:
        """Whether it needs the checkpoint: training has models of its own, and products have none."""
        return self.kind not in ("train", "product")


def parse_rows(text: str) -> list[Row]:
    """Read `prefill:512,decode:128x8,load`.

    Raises:
        ValueError: a row that there is not; the message names those that there are.
    """
    return list(dict.fromkeys(_parse(part.strip()) for part in text.split(",")))


def _parse(part: str) -> Row:
    match = _SPELLED.fullmatch(part)
    if match is None or match[1] not in KINDS:
        raise ValueError(f"row {part!r} is none of those known: {', '.join(KINDS)}, as in decode:128x8")
    kind, size, batch = match.groups()
    if kind == "train":
        if size not in TRAINED or batch:
            raise ValueError(f"row {part!r} needs the size of a model, {' or '.join(TRAINED)}, as in train:3m")
        return Row(kind, model=size)
    if kind not in _SIZED:
        if size or batch:
            raise ValueError(f"row {part!r} has a size, but {kind} takes none")
        return Row(kind)
    if size is None or not size.isdecimal() or not 1 <= int(size) <= 1_000_000:
        raise ValueError(f"row {part!r} needs a number of tokens from 1 to 1000000, as in {kind}:128")
    if batch and (kind not in _BATCHED or not 1 <= int(batch) <= 1024):
        raise ValueError(f"row {part!r}: a number of rows is for {', '.join(_BATCHED)}, from 1 to 1024")
    return Row(kind, int(size), int(batch or 1))


ALL = parse_rows(
    "cold,load,prefill:128,prefill:512,prefill:2048,prefill:8192,decode:128,decode:2048,decode:8192,"
    "decode:128x2,decode:128x4,decode:128x8,decode:128x16,lookup,edit,memory:128,memory:2048,memory:8192,"
    "memory:128x4,memory:128x16,product:1,product:2,product:4,product:8,product:16,product:128,product:512"
)
"""What is measured where nothing is said."""

QUICK = parse_rows("cold,load,prefill:32,decode:32,decode:32x3,lookup,edit,memory:32,product:1,product:8")
"""What `--quick` measures."""

TRAIN = parse_rows("train:3m,train:30m")
QUICK_TRAIN = parse_rows("train:tiny")
