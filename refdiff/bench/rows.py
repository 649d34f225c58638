"""What can be measured: the rows of the table, how the command line spells them, and how much work each is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from refdiff.bench.sizes import TRAINED
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.weights.names import count_parameters, parameter_shapes

KINDS = {
    "cold": "process start to the first token of a 16-token prompt",
    "load": "opening the checkpoint, in a new process",
    "prefill": "reading a prompt of SIZE tokens, to the next one",
    "decode": "tokens one by one after SIZE tokens, xB rows at a time",
    "lookup": "a text that repeats itself, after its first token, with prompt_lookup_num_tokens",
    "edit": "the same with a program of which some names are changed",
    "memory": "most memory of a new process that reads SIZE tokens and decodes 16",
    "product": "one weight of 2048 × 8192 with SIZE tokens",
    "check": "the oracle's check of SIZE queries and keys of xB heads in bfloat16: processor time, then most memory",
    "diagnose": "the oracle's diagnosis of the same with heads paired in another order",
    "train": f"forward, backward and AdamW of a model of {' or '.join(TRAINED)}",
}
"""Kind of row → what is measured."""

OF_ORACLE = ("check", "diagnose")
"""Kinds of rows that need neither a model nor another side."""

_SIZED = ("prefill", "decode", "memory", "product", *OF_ORACLE)
_BATCHED = ("prefill", "decode", "memory", *OF_ORACLE)
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
            case "check" | "diagnose":
                return f"{self.kind} {self.size}, {self.batch} head{'s' * (self.batch > 1)}"
            case "train":
                return f"training step, {self.model}"
            case _:
                return f"{self.kind} {self.size or ''}".rstrip() + rows

    @property
    def needs_model(self) -> bool:
        """Whether it needs the checkpoint: training has models of its own, and the others have none."""
        return self.kind not in ("train", "product", *OF_ORACLE)


def parse_rows(text: str) -> list[Row]:
    """Read `prefill:512,decode:128x8,load`.

    Raises:
        ValueError: a row that there is not; the message names those that there are.
    """
    return list(dict.fromkeys(_parse(part.strip()) for part in text.split(",")))


def _parse(part: str) -> Row:
    match = _SPELLED.fullmatch(part)
    if match is None or match[1] not in KINDS:
        raise ValueError(f"got {part!r}, expected {', '.join(KINDS)}, as in decode:128x8")
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

ORACLE = parse_rows("check:1024x32,check:4096x8,diagnose:256x4")
"""What the guide for kernel authors has."""

WEIGHT = 2048, 8192
"""Outputs and inputs of the weight that `product` multiplies with."""

POSSIBLE = 1.05
"""A share of a ceiling above which one of the two was not measured as it is: no more than the spread of both."""

FEW = 16
"""Up to so many tokens, what a product costs is reading its weight."""


@dataclass(frozen=True)
class Work:
    """Tokens that a row makes or reads, bytes that it must read, operations that a plain pass does; 0 if not counted.

    unit: what a table shows: tok/s, s, B, GB/s or GFLOP/s.
    matrices: how many numbers of matrices are among those bytes, of `itemsize` bytes each.
    spared: how many of the operations a pass leaves out that does of the last layer only what the last token needs.
    ceiling: what the machine holds against it: gemv, on a device copy (bytes a second), sgemm, on a device matmul
        (operations a second), or "".
    """

    unit: str
    ceiling: str = ""
    tokens: int = 0
    bytes: int = 0
    operations: int = 0
    matrices: int = 0
    itemsize: int = 4
    spared: int = 0

    def rate(self, measured: float) -> float:
        """Turn seconds (or bytes) into what the unit says."""
        match self.unit:
            case "tok/s":
                return self.tokens / measured
            case "GB/s":
                return self.bytes / measured / 1e9
            case "GFLOP/s":
                return self.operations / measured / 1e9
            case _:
                return measured

    def counted(self, itemsize: int | None = None, sparing: bool = False) -> int:
        """Count the bytes that a side reads, or the operations that it does, to compare with the ceiling.

        Bytes, of a side that has its matrices in `itemsize` bytes; or operations, without those spared where it spares
        them. Whatever a side does beyond what is needed (scores that causality hides, or computed once more for the
        other half of the values, as transformers does) counts for nobody.
        """
        if self.ceiling in ("gemv", "copy"):
            return self.bytes + self.matrices * ((itemsize or self.itemsize) - self.itemsize)
        return self.operations - self.spared * sparing


def work_of(
    row: Row,
    config: DiffLlamaConfig | None,
    *,
    steps: int,
    itemsize: int = 4,
    matrices: int | None = None,
    **shape: int,
) -> Work:
    """Count a row's work on a model of `itemsize` bytes a number, `matrices` in a matrix; `shape` is of training."""
    if row.kind in ("cold", "load", *OF_ORACLE):
        return Work("s")
    if row.kind == "memory":
        return Work("B")
    if row.kind == "product":
        outputs, inputs = WEIGHT
        few = row.size <= FEW
        return Work(
            "GB/s" if few else "GFLOP/s",
            "gemv" if few else "sgemm",
            bytes=4 * outputs * inputs,
            operations=2 * outputs * inputs * row.size,
        )
    if config is None:
        raise ValueError(f"{row.spelled} needs a model")
    if row.kind in ("lookup", "edit"):
        return Work("tok/s", tokens=steps)
    if row.kind == "prefill":
        once = _pass(config, row.size) + 2 * config.vocab_size * config.hidden_size
        operations, spared = once * row.batch, _spared(config, row.size) * row.batch
        return Work("tok/s", "sgemm", tokens=row.size * row.batch, operations=operations, spared=spared)
    if row.kind == "decode":
        read, each = steps * _matrices(config, head=True), matrices or itemsize
        cached = sum(_cache(config) * (row.size + i) for i in range(1, steps + 1)) * row.batch * itemsize
        tokens = steps * row.batch
        return Work("tok/s", "gemv", tokens=tokens, bytes=read * each + cached, matrices=read, itemsize=each)
    tokens = shape["batch"] * shape["context"]
    logits = 2 * config.vocab_size * config.hidden_size * tokens
    backward = 3  # the gradients of both factors of every product cost as much as the product each
    operations = backward * (_pass(config, shape["context"]) * shape["batch"] + logits)
    return Work("tok/s", "sgemm", tokens=tokens, operations=operations)


def _matrices(config: DiffLlamaConfig, *, head: bool) -> int:
    """Numbers in the matrices that every token is multiplied by, those of the head among them or not."""
    shapes: dict[str, Any] = parameter_shapes(config, "DiffLlamaForCausalLM")
    layers = count_parameters(s for name, s in shapes.items() if len(s) > 1 and ".layers." in name)
    return layers + (config.vocab_size * config.hidden_size if head else 0)


def _cache(config: DiffLlamaConfig) -> int:
    """Numbers of keys and values that one token has in the cache."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def _pass(config: DiffLlamaConfig, tokens: int) -> int:
    """Operations of all layers on a row of tokens, attention over the keys that causality shows and no others."""
    attention = config.num_hidden_layers * _attention(config, tokens * (tokens + 1) // 2)
    return 2 * _matrices(config, head=False) * tokens + attention


def _spared(config: DiffLlamaConfig, tokens: int) -> int:
    """Those of the last layer that its last token's result does not need: of the others, all but keys and values."""
    shapes: dict[str, Any] = parameter_shapes(config, "DiffLlamaForCausalLM")
    last = f".layers.{config.num_hidden_layers - 1}."
    needed = count_parameters(
        s
        for name, s in shapes.items()
        if len(s) > 1 and last in name and not name.endswith(("k_proj.weight", "v_proj.weight"))
    )
    others = tokens - 1
    return 2 * needed * others + _attention(config, others * tokens // 2)


def _attention(config: DiffLlamaConfig, seen: int) -> int:
    """Operations of a layer's attention, where queries see so many keys in all.

    Scores; and as much again for the values, of half as many pairs and twice the width.
    """
    return 2 * 2 * config.num_query_heads * config.head_dim * seen
