"""Whether two models are one function: their configs and weights compared, and their attention computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import to_numpy
from refdiff.backends import ops_for
from refdiff.convert.checks import attention_of, refuse_another_depth, refuse_another_function
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.diffllama import ATTENTION, Context
from refdiff.model.weights import flatten, nest
from refdiff.model.weights.precision import UNIT, round_to

Model = tuple[DiffLlamaConfig, Mapping[str, Any]]
FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

TOKENS = 9
EXACT = 1e-10
"""What float64 leaves of a layer's largest output after some hundred roundings, with room; more would be a mistake."""
ROUNDINGS = 8
"""How many times as far as one rounding of every weight moved a layer, rounding may have moved it. Each weight moves by
at most as much as there, but not in the same direction: another draw of signs gives another largest difference, seldom
twice as large. Mistakes are as large as the output."""


@dataclass(frozen=True)
class Proof:
    """How far two models' attention layers are apart on random inputs, computed in float64.

    Attributes:
        differences: for each layer, the largest difference, as a share of the layer's largest output: 0 where both
            give zeros alone, infinite where only one does, or where one gives NaN or infinity.
        changed: the names of weights outside of attention that are not the same.
        rounded: for each layer, the same measure where every weight of the first model is moved by the largest error
            that a rounding to the stored type makes, up or down at random; 0 where nothing is rounded.
    """

    differences: tuple[float, ...]
    changed: tuple[str, ...] = ()
    rounded: tuple[float, ...] = ()

    @property
    def worst(self) -> float:
        """The largest of the differences; NaN where one is."""
        return float(np.max(self.differences))

    @property
    def layer(self) -> int:
        """The layer that has it, counted from 0."""
        return int(np.argmax(self.differences))

    @property
    def unexplained(self) -> int | None:
        """The first layer whose difference is more than what rounding explains, counted from 0; None if there is none.

        That is `EXACT`, and `ROUNDINGS` times what one rounding of every weight does to the layer.
        """
        rounded = self.rounded or (0.0,) * len(self.differences)
        return next(
            (
                i
                for i, (difference, one) in enumerate(zip(self.differences, rounded, strict=True))
                if not difference <= EXACT + ROUNDINGS * one
            ),
            None,
        )

    def __str__(self) -> str:
        others = f"not the same are {', '.join(self.changed)}" if self.changed else "the other weights are the same"
        return (
            f"{len(self.differences)} attention layers in both wirings, in float64, on random inputs: they differ by "
            f"at most {self.worst:.1e} of the largest output (layer {self.layer}); {others}"
        )


def prove(before: Model, after: Model, seed: int = 0, *, dtype: str | None = None) -> Proof:
    """Compute every attention layer of two models on the same random inputs, in float64, and compare the outputs.

    All other weights are compared as they are, and the fields of the configs that decide what is computed from them.
    Attention sees positions from 0 to the last that the model is made for, and inputs so small that the ε of the norm
    matters.

    One layer at a time: beside the weights themselves, which may be `refdiff.arrays.Deferred`, it takes the memory of a
    few copies of one layer's attention in float64.

    Args:
        before: the config and the weights of one model.
        after: those of the other.
        seed: of the inputs.
        dtype: the type that the second model's weights are rounded to, all of them: the others must be the same after
            rounding, and `Proof.rounded` says what rounding does to attention.

    Raises:
        ValueError: the configs are of two functions, or weights are not those of their config.
    """
    refuse_another_function(before[0], after[0])
    for (config, params), which in ((before, "first"), (after, "second")):
        refuse_another_depth(config, params, which)
    g = np.random.default_rng(seed)
    inputs = g.normal(size=(3, TOKENS, before[0].hidden_size))
    inputs[2] *= 1e-3
    differences, rounded = [], []
    for layer in range(before[0].num_hidden_layers):
        one = _wide(attention_of(*before, layer))
        a = _attention(before[0], one, layer, inputs)
        differences.append(_apart(a, _attention(after[0], _wide(attention_of(*after, layer)), layer, inputs)))
        if dtype is not None:
            moved = {name: w * (1 + UNIT[dtype] * g.choice([-1.0, 1.0], size=w.shape)) for name, w in one.items()}
            rounded.append(_apart(a, _attention(before[0], moved, layer, inputs)))
    return Proof(tuple(differences), tuple(_changed(before[1], after[1], dtype)), tuple(rounded))


def _wide(p: Mapping[str, Any]) -> dict[str, FloatArray]:
    """All weights by name, in float64."""
    return {name: to_numpy(array).astype(np.float64, copy=False) for name, array in flatten(p).items()}


def _apart(a: FloatArray, b: FloatArray) -> float:
    size, other = (float(np.abs(x).max()) for x in (a, b))
    if not (math.isfinite(size) and math.isfinite(other)) or (size == 0) != (other == 0):
        return math.inf
    return float(np.abs(a - b).max()) / size if size else 0.0


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], dtype: str | None) -> Iterator[str]:
    """Go through the names of the weights outside of attention that only one has, or that differ."""
    one, other = (
        {name: a for name, a in flatten(params).items() if ".self_attn." not in name} for params in (before, after)
    )
    for name in {**one, **other}:
        if name not in one or name not in other or not _same(one[name], other[name], dtype):
            yield name


def _same(one: Any, other: Any, dtype: str | None) -> bool:
    """Whether two weights are equal, the first one rounded to `dtype`; some rows at a time."""
    if one is other and dtype is None:
        return True
    if one.shape != other.shape:
        return False
    a, b = to_numpy(one), to_numpy(other)
    rows = max(1, (1 << 20) // max(1, a[:1].size))
    for i in range(0, len(a), rows):
        x, y = a[i : i + rows], b[i : i + rows]
        if not np.array_equal(x if dtype is None else round_to(x, dtype), y, equal_nan=True):
            return False
    return True


def _attention(config: DiffLlamaConfig, p: Mapping[str, FloatArray], layer: int, x: FloatArray) -> FloatArray:
    ops = ops_for()
    positions = _positions(config.max_position_embeddings, x.shape[1])
    frequencies = ops.rope_frequencies(
        config.rope_parameters, config.head_dim, config.max_position_embeddings, int(positions[-1]) + 1
    )
    cos, sin = ops.rope_cos_sin(positions[None], *frequencies, np.float64)
    with np.errstate(all="ignore"):  # what is not finite shows in the result
        result: FloatArray = ATTENTION[config.wiring](nest(p), x, layer, Context(config, ops, cos, sin))
    return result


def _positions(limit: int, count: int) -> IntArray:
    """`count` positions, rising from 0 to the last one below `limit` by steps that grow: near ones and far ones."""
    n = np.arange(count)
    positions = np.maximum(n, (max(limit, count) ** (n / (count - 1)) - 1).astype(np.int64))
    positions[-1] = max(limit, count) - 1
    return positions
