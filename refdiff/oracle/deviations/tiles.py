"""Mistakes of kernels that compute by tiles or read raw bits: few inputs show them, or one number says which it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.layers.diff_attention import attention_scores, per_map
from refdiff.oracle.deviations.deviation import Deviation, Problem
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.mistakes.catalogue import Layer
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_mask import attention_mask

Numpy = np.ndarray[Any, Any]
SIZES = (8, 16, 32, 64, 128, 256)
"""Of tiles, in queries or keys."""
UNDERFLOW = -103.97
"""The exponential of a smaller number is 0 in float32."""


def _one_maximum(
    right: Layer, q1: Numpy, k1: Numpy, q2: Numpy, k2: Numpy, v: Numpy, lambda_: Numpy, mask: Numpy | None = None,
    bias: Numpy | None = None, *, causal: bool = True, **how: Any,
) -> Any:  # fmt: skip
    """Hide the keys whose exponential is lost; a row of a map that loses all of them is 0 / 0."""
    H = q1.shape[1]
    seen = []
    for q, k, see, more in zip((q1, q2), (k1, k2), per_map(mask, H), per_map(bias, H), strict=True):
        scores, visible = attention_scores(q, k, see, more, causal=causal)
        seen.append(scores if visible is None else np.where(visible, scores, -np.inf))
    top = np.maximum(*(np.max(z, axis=-1, keepdims=True, initial=-np.inf) for z in seen))
    top = np.where(np.isneginf(top), 0.0, top)
    kept = [z >= top + UNDERFLOW for z in seen]
    lost = [np.any(z > -np.inf, axis=-1) & ~np.any(some, axis=-1) for z, some in zip(seen, kept, strict=True)]
    out = right(q1, k1, q2, k2, v, lambda_, np.concatenate(kept, axis=1), bias, causal=False, **how)
    return np.where((lost[0] | lost[1])[..., None], np.nan, out)


_ONE_MAXIMUM = "One running maximum for both maps: lower scores underflow, and a map that loses all of them is 0 / 0."


def _bits(spec: Spec, inputs: Inputs) -> Inputs | None:
    """Q, K and V as the whole numbers that the bits of bfloat16 are."""
    names = [name for name in ("q", "k", "v", "k_pages", "v_pages") if name in inputs]
    if not names:
        return None
    return {**inputs, **{name: bfloat16_bits(inputs[name]) for name in names}}


def bfloat16_bits(x: Numpy) -> Numpy:
    """The bits of each number in bfloat16, as an unsigned whole number."""
    bits = np.asarray(round_to(x, "bfloat16"), dtype=np.float32).view(np.uint32) >> np.uint32(16)
    return bits.astype(np.float64)


UNUSUAL: tuple[Deviation, ...] = (
    Deviation(
        "one_maximum_for_both_maps", _ONE_MAXIMUM, "maximum",
        mistake=Mistake("one_maximum_for_both_maps", _ONE_MAXIMUM, "diff_attention", "maximum", "", "", _one_maximum),
    ),
    Deviation(
        "bfloat16_bits_read_as_integers", "The 16 bits of each number of q, k and v taken for a whole number.", "bits",
        arrays=_bits,
    ),
)  # fmt: skip
"""Deviations that no usual input shows, or that every input shows: a diagnosis tries them beside `deviations(spec)`."""


def tail(spec: Spec, inputs: Inputs, tile: int) -> int:
    """How many keys the last tile lacks, where a query could see them."""
    return -inputs["k"].shape[2] % tile if spec.causal == "none" and kind_of(inputs) == "dense" else 0


def with_tail(spec: Spec, inputs: Inputs, tile: int) -> Problem:
    """Zero keys and values after the last, up to a multiple of `tile`, all of them seen."""
    more = tail(spec, inputs, tile)
    if not more:
        return Problem(spec, inputs)
    see = attention_mask(spec, inputs)
    made = {name: x for name, x in inputs.items() if name not in ("key_mask", "mask")}
    made |= {name: _padded(inputs[name], 2, more, 0.0) for name in ("k", "v")}
    made["mask"] = _padded(see, 3, more, True)
    if "bias" in inputs:
        made["bias"] = _padded(inputs["bias"], inputs["bias"].ndim - 1, more, 0.0)
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    made["k_positions"] = _padded(inputs.get("k_positions", np.arange(S)[None]), 1, more, 0)
    made.setdefault("q_positions", np.arange(S - T, S)[None])
    return Problem(spec.replace(window=None), made)


def _padded(x: Numpy, axis: int, more: int, value: Any) -> Numpy:
    width = [(0, more if n == axis % x.ndim else 0) for n in range(x.ndim)]
    return np.pad(x, width, constant_values=value)


def with_window_of_tiles(spec: Spec, inputs: Inputs, queries: int, keys: int, *, by_position: bool) -> Problem:
    """A window that starts where a tile of `keys` does, for the first of each tile of `queries`.

    Args:
        by_position: whether tiles of queries count from the first key, as where queries are as many as keys, and so in
            a part of them; else from the first query.
    """
    if spec.window is None or kind_of(inputs) != "dense":
        return Problem(spec, inputs)
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    before = 0 if spec.causal == "top_left" else S - T
    t = np.arange(T) + before
    first_query = t // queries * queries if by_position else (t - before) // queries * queries + before
    first = (first_query - spec.window + 1) // keys * keys
    unlimited = spec.replace(window=None)
    see = attention_mask(unlimited, inputs) & (np.arange(S) >= first[:, None])
    made = {name: x for name, x in inputs.items() if name != "key_mask"}
    return Problem(unlimited.replace(causal="none"), {**made, "mask": see})
