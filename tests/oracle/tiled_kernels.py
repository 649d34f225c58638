"""A kernel that goes through the keys in tiles, as fused ones do, and the mistakes that only a second tile shows.

They are none of `refdiff.oracle.deviations`: how many keys a tile has is no choice of a spec, and without it such a
mistake is no function of spec and inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refdiff.backends import overlay
from refdiff.oracle import Recipe, Spec, truth
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import quantise
from refdiff.oracle.rounding.evaluation_order import HELD_OUT, Arithmetic
from refdiff.oracle.rounding.rounded_attention import scores_of_maps
from refdiff.oracle.rounding.rounded_layers import rounded_ops

Numpy = np.ndarray[Any, Any]
ORDER = HELD_OUT[3]
MISTAKES = (
    "last_partial_tile_dropped",
    "first_tile_alone",
    "output_not_rescaled",
    "sum_not_rescaled",
    "neither_rescaled",
    "second_map_not_rescaled",
    "largest_of_the_tile_alone",
    "largest_of_the_first_tile_kept",
    "a_key_lost_at_each_border",
    "a_key_twice_at_each_border",
    "tile_that_begins_with_the_own_key_skipped",
    "tile_that_begins_hidden_skipped",
    "hidden_tile_is_nan",
    "mask_of_the_first_tile_again",
    "bias_of_the_first_tile_again",
)


def tiled(spec: Spec, inputs: dict[str, Any], *, tile: int = 64, mistake: str = "") -> Any:
    """A right kernel in the type of its inputs, or one with a mistake by name."""
    recipe = Recipe.of(str(inputs["x" if "x" in inputs else "q"].dtype))
    how = Arithmetic(recipe, ORDER)

    def wrap(name: str, layer: Callable[..., Any]) -> Callable[..., Any]:
        return partial(_attention, how, tile, mistake) if name == "diff_attention" else layer

    with np.errstate(all="ignore"):
        ops = overlay(rounded_ops(recipe, ORDER), wrap)
        out = truth(spec, quantise(inputs, recipe), want=("out",), ops=ops).out
        return round_to(np.asarray(out), recipe.storage).astype(inputs["x" if "x" in inputs else "q"].dtype)


def _attention(
    how: Arithmetic,
    tile: int,
    mistake: str,
    q1: Numpy,
    k1: Numpy,
    q2: Numpy,
    k2: Numpy,
    v: Numpy,
    lambda_: Numpy,
    mask: Numpy | None = None,
    bias: Numpy | None = None,
    *,
    causal: bool = True,
    ops: Any = None,
) -> Numpy:
    n = q1.shape[1] // k1.shape[1]
    k1, k2, v = (np.repeat(how.array(x), n, axis=1) for x in (k1, k2, v))
    again = np.arange(k1.shape[2]) % tile
    if mistake == "mask_of_the_first_tile_again" and mask is not None and mask.shape[-1] > 1:
        mask = mask[..., again]
    if mistake == "bias_of_the_first_tile_again" and bias is not None and bias.shape[-1] > 1:
        bias = bias[..., again]
    maps = scores_of_maps(how, (q1, k1, q2, k2), mask, bias, causal)
    first, second = (how.round_at(_map(how, tile, mistake, n, z, v), "o") for n, z in enumerate(maps, start=1))
    return how.round_at(first - how.array(lambda_) * second, "o").astype(np.float64)


def _map(how: Arithmetic, tile: int, mistake: str, number: int, z: Numpy, v: Numpy) -> Numpy:
    """Softmax of a map's scores times V, by an online softmax."""
    rows, S = z.shape[:-1], z.shape[-1]
    largest = np.full((*rows, 1), -math.inf, dtype=np.float32)
    total, out = np.zeros_like(largest), np.zeros((*rows, v.shape[-1]), dtype=np.float32)
    for start, end in _tiles(S, tile, mistake):
        part = _seen(z[..., start:end], start, z, mistake)
        top = np.max(part, axis=-1, keepdims=True)
        new = np.maximum(largest, top)
        if mistake == "largest_of_the_tile_alone":
            new = np.where(np.isneginf(top), largest, top)
        if mistake == "largest_of_the_first_tile_kept" and start:
            new = np.where(np.isneginf(largest), new, largest)
        safe = np.where(np.isneginf(new) & (mistake != "hidden_tile_is_nan"), np.float32(0), new)
        raw, fade = how.exp(part, safe), how.exp(largest, safe)
        fade = np.where(np.isneginf(largest) & ~np.isnan(fade), np.float32(0), fade)
        wrong = mistake == "neither_rescaled" or (mistake == "second_map_not_rescaled" and number == 2)
        of_sum = np.float32(1) if wrong or mistake == "sum_not_rescaled" else fade
        of_out = np.float32(1) if wrong or mistake == "output_not_rescaled" else fade
        total = total * of_sum + np.sum(raw, axis=-1, keepdims=True)
        out = out * of_out + how.product(how.round_at(raw, "p"), v[..., start:end, :])
        largest = new
    some = np.any(~np.isneginf(z), axis=-1, keepdims=True)
    return np.where(some, out / np.where(total == 0, np.float32(1), total), np.float32(0))


def _tiles(S: int, tile: int, mistake: str) -> list[tuple[int, int]]:
    """Where tiles begin and end. There is always a first one, so that few keys are right."""
    starts = list(range(0, S, tile))
    if mistake == "first_tile_alone":
        starts = starts[:1]
    if mistake == "last_partial_tile_dropped":
        starts = starts[: max(1, S // tile)]
    shift = {"a_key_lost_at_each_border": 1, "a_key_twice_at_each_border": -1}.get(mistake, 0)
    return [(s + shift * (s > 0), min(s + tile, S)) for s in starts if s + shift * (s > 0) < S]


def _seen(part: Numpy, start: int, z: Numpy, mistake: str) -> Numpy:
    """The scores of a tile, all −∞ in rows for which it is skipped."""
    if not start:
        return part
    skipped = np.zeros((*z.shape[:-1], 1), dtype=bool)
    if mistake == "tile_that_begins_with_the_own_key_skipped":
        skipped[..., 0] = ~np.isneginf(z[..., start]) & np.all(np.isneginf(z[..., start + 1 :]), axis=-1)
    if mistake == "tile_that_begins_hidden_skipped":
        skipped[..., 0] = np.isneginf(z[..., start])
    return np.where(skipped, np.float32(-math.inf), part)
