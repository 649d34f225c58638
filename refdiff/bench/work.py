"""How much work a row is: tokens made, bytes that must be read, multiplications and additions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refdiff.bench.rows import Row
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.weights.names import count_parameters, parameter_shapes

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
        """Count what is held against the ceiling: what a side reads or computes itself, not what another one would.

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
    if row.kind in ("cold", "load"):
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
    asked = count_parameters(
        s
        for name, s in shapes.items()
        if len(s) > 1 and last in name and not name.endswith(("k_proj.weight", "v_proj.weight"))
    )
    others = tokens - 1
    return 2 * asked * others + _attention(config, others * tokens // 2)


def _attention(config: DiffLlamaConfig, seen: int) -> int:
    """Operations of a layer's attention, where queries see so many keys in all.

    Scores; and as much again for the values, of half as many pairs and twice the width.
    """
    return 2 * 2 * config.num_query_heads * config.head_dim * seen
