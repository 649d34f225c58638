"""Mistakes of kernels with tiles or splits of keys, or with one maximum for both maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refdiff.layers.diff_attention import split_maps
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.mistakes.catalogue import Call, Kernel, Mistake, in_attention
from refdiff.oracle.mistakes.in_backward import log_sums, masked_scores
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import use_explicit_mask

TILE_SIZES = (8, 16, 32, 64, 128, 256)
"""The tile sizes that are tried, in queries or keys."""
MIN_EXPONENT = -103.97
"""The exponential of a smaller exponent is 0 in float32."""
MAX_EXPONENT = 88.72
"""The exponential of a larger exponent is infinite in float32."""


def _share_maximum(call: Call) -> Any:
    """Hide the keys whose exponential underflows; a row of a map that loses all keys becomes NaN (0 / 0)."""
    seen = masked_scores(call)
    top = np.maximum(*(np.max(z, axis=-1, keepdims=True, initial=-np.inf) for z in seen))
    return _hide_underflow(call, seen, np.where(np.isneginf(top), 0.0, top) + MIN_EXPONENT)


def _leave_maximum(call: Call) -> Any:
    """Make a row NaN in which the sum of exponentials overflows (∞ / ∞) or is 0 (0 / 0); hide keys that underflow."""
    seen = masked_scores(call)
    overflows = [np.logaddexp.reduce(z, axis=-1, initial=-np.inf) > MAX_EXPONENT for z in seen]
    return np.where((overflows[0] | overflows[1])[..., None], np.nan, _hide_underflow(call, seen, MIN_EXPONENT))


def _hide_underflow(call: Call, seen: list[Numpy], least: Any) -> Numpy:
    """Hide the keys with scores below `least`; a row of a map that loses all keys becomes NaN (0 / 0)."""
    kept = [z >= least for z in seen]
    lost = [np.any(z > -np.inf, axis=-1) & ~np.any(some, axis=-1) for z, some in zip(seen, kept, strict=True)]
    out = call(mask=np.concatenate(kept, axis=1), causal=False)
    return np.where((lost[0] | lost[1])[..., None], np.nan, out)


def _skip_rescaling(tile: int, of_values: bool, of_weights: bool, call: Call) -> Any:
    """Attend by tiles of keys without rescaling some sums when a later tile has a larger score.

    Equation:
        with scores z, m_s their maximum up to the end of the tile of key s, and m their maximum, a sum that is not
        multiplied by e^(m_old − m_new) is Σ e^(z_s − m_s) x_s = Σ e^(z_s − m) e^(m − m_s) x_s

    A bias m − m_s has this effect on Σ e^z v (`of_values`). On the denominator Σ e^z (`of_weights`) it is a factor.
    """
    more, ratios = [], []
    for z in masked_scores(call):
        S = z.shape[-1]
        tops = np.maximum.reduceat(z, np.arange(0, S, tile), axis=-1)
        tops = np.repeat(np.maximum.accumulate(tops, axis=-1), tile, axis=-1)[..., :S]
        top = np.max(z, axis=-1, keepdims=True)
        known = np.isfinite(z)
        behind = np.where(known, np.where(known, top, 0.0) - np.where(known, tops, 0.0), 0.0)
        weights = np.where(known, np.exp(np.where(known, z - np.where(known, top, 0.0), 0.0)), 0.0)
        once, grown = (np.sum(weights * x, axis=-1, keepdims=True) for x in (1.0, np.exp(behind)))
        above, below = grown if of_values else once, grown if of_weights else once
        ratios.append(np.where(below > 0, above / np.where(below > 0, below, 1.0), 1.0))
        more.append(behind if of_values else np.zeros_like(behind))
    changed = {"lambda_": call.lambda_ * ratios[1] / ratios[0]}
    if of_values:
        biases = split_maps(call.bias, call.q1.shape[1])
        changed["bias"] = np.concatenate([x if b is None else x + b for x, b in zip(more, biases, strict=True)], axis=1)
    return ratios[0] * call(**changed)


def _scale_maps(call: Call, first: Numpy, second: Numpy) -> Any:
    """Multiply the rows of the two maps by `first` and `second`, (B, H, T, 1)."""
    return first * call(lambda_=call.lambda_ * second / np.where(first == 0, 1.0, first))


def _mask_after_softmax(call: Call) -> Any:
    every = masked_scores(call, without=True)
    shares = [np.exp(a - b) for a, b in zip(log_sums(masked_scores(call)), log_sums(every), strict=True)]
    return _scale_maps(call, *shares)


def _share_denominator(call: Call) -> Any:
    first, second = log_sums(masked_scores(call))
    return call(lambda_=call.lambda_ * np.exp(second - first))


def _merge_splits(length: int, log_weight: Callable[[Numpy, Numpy], Numpy], call: Call) -> Any:
    """Merge splits of `length` keys by weights whose logarithm is a function of their log-sum-exp and maximum."""
    biases = []
    for z, bias in zip(masked_scores(call), split_maps(call.bias, call.q1.shape[1]), strict=True):
        starts = np.arange(0, z.shape[-1], length)
        lse, top = (f.reduceat(z, starts, axis=-1) for f in (np.logaddexp, np.maximum))
        more = np.where(np.isfinite(lse), log_weight(lse, top) - lse, 0.0)
        more = np.repeat(more, length, axis=-1)[..., : z.shape[-1]]
        biases.append(more if bias is None else more + bias)
    return call(bias=np.concatenate(biases, axis=1))


WRONG_MERGES: tuple[tuple[str, str, Callable[[Numpy, Numpy], Numpy]], ...] = (
    ("in_another_base", "e^lse of a log-sum-exp to base 2", lambda lse, _: lse / math.log(2)),
    ("in_base_2", "2^lse of a natural log-sum-exp", lambda lse, _: lse * math.log(2)),
    ("without_sums", "e^m of the maximum, without the sum", lambda _, top: top),
    ("without_weights", "equal weights", lambda lse, _: 0 * lse),
)
"""(end of the name, words, the logarithm of a split's weight)"""
ONLINE_AXIS = "online softmax"
"""The axis of deviations of an online softmax, of which there is one for each tile size."""
UNSCALED_SUMS = (
    ("accumulator_not_rescaled", "the weighted sum of values is not", True, False),
    ("denominator_not_rescaled", "the sum of weights is not", False, True),
    ("sums_not_rescaled", "neither sum is", True, True),
)
"""(name, words, whether the sum of weighted values is not rescaled, whether the sum of weights is not)"""

TILE_DEVIATIONS: tuple[Mistake, ...] = (
    in_attention(
        "maximum_not_subtracted",
        "e^z in place of e^(z − m), or partial sums merged by e^lse: it overflows to ∞ / ∞, or underflows to 0 / 0.",
        "overflow", _leave_maximum,
    ),
    in_attention(
        "one_maximum_for_both_maps",
        "One running maximum for both maps: low scores underflow, and a map in which all do is 0 / 0.",
        "maximum", _share_maximum,
    ),
    in_attention(
        "all_scores_zero", "Every score is 0, as with a scale of 0: equal weights, but for a bias.", "scale",
        lambda call: call(q1=0 * call.q1, q2=0 * call.q2),
    ),
    in_attention(
        "mask_after_softmax", "Weights of hidden keys set to 0 after the softmax: the others do not sum to 1.", "mask",
        _mask_after_softmax,
    ),
    in_attention(
        "one_denominator_for_both_maps", "Both maps divided by the sum of the first.", "maximum", _share_denominator,
    ),
    *(
        in_attention(
            f"splits_of_{length}_merged_{name}", f"Splits of {length} keys merged by {what}.", ONLINE_AXIS,
            partial(_merge_splits, length, log_weight),
        )
        for name, what, log_weight in WRONG_MERGES
        for length in TILE_SIZES
    ),
    *(
        in_attention(
            f"{name}_by_tiles_of_{tile}",
            f"Online softmax by tiles of {tile} keys: {what} multiplied by e^(m_old − m_new) where the maximum grows.",
            ONLINE_AXIS, partial(_skip_rescaling, tile, of_values, of_weights),
        )
        for name, what, of_values, of_weights in UNSCALED_SUMS
        for tile in TILE_SIZES
    ),
)  # fmt: skip


def tail_padding(spec: Spec, inputs: Inputs, tile: int) -> int:
    """Return how many padding keys complete the last tile; 0 unless the inputs are dense and the mask not causal."""
    return -inputs["k"].shape[2] % tile if spec.causal == "none" and kind_of(inputs) == "dense" else 0


def pad_tail(spec: Spec, inputs: Inputs, tile: int) -> Kernel:
    """Pad keys and values with visible zeros to a multiple of `tile`."""
    more = tail_padding(spec, inputs, tile)
    masked, made = use_explicit_mask(spec, inputs)
    for name, axis in (("k", 2), ("v", 2), ("mask", 3), ("bias", -1), ("k_positions", 1)):
        if name in made:
            width = np.zeros((made[name].ndim, 2), dtype=int)
            width[axis, 1] = more
            made[name] = np.pad(made[name], width, constant_values=name == "mask")
    return Kernel(masked, made)


def tile_window(spec: Spec, inputs: Inputs, queries: int, keys: int) -> Kernel:
    """Start the window at a multiple of `keys`, with one start for each tile of `queries`: that of its first query."""
    if spec.window is None or kind_of(inputs) != "dense":
        return Kernel(spec, inputs)
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    before = 0 if spec.causal == "top_left" else S - T
    first = (np.arange(T) // queries * queries + before - spec.window + 1) // keys * keys
    masked, made = use_explicit_mask(spec.replace(window=None), inputs)
    made["mask"] = made["mask"] & (np.arange(S) >= first[:, None])
    return Kernel(masked, made)
