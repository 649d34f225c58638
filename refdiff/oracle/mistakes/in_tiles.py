"""Mistakes of kernels with tiles or splits of keys, or with one denominator for both maps."""

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

LogWeight = Callable[[Numpy, Numpy], Numpy]
"""The logarithm of a tile's weight, from the log-sum-exps and the maxima of all tiles."""
TILE_SIZES = (8, 16, 32, 64, 128, 256)
"""The tile sizes that are tried, in queries or keys."""


def _scale_maps(call: Call, first: Numpy, second: Numpy, **changed: Any) -> Any:
    """Multiply the rows of the two maps by `first` and `second`, (B, H, T, 1)."""
    return first * call(lambda_=call.lambda_ * second / np.where(first == 0, 1.0, first), **changed)


def _mask_after_softmax(call: Call) -> Any:
    every = masked_scores(call, without=True)
    shares = [np.exp(a - b) for a, b in zip(log_sums(masked_scores(call)), log_sums(every), strict=True)]
    return _scale_maps(call, *shares)


def _share_denominator(call: Call) -> Any:
    first, second = log_sums(masked_scores(call))
    return call(lambda_=call.lambda_ * np.exp(second - first))


def _weigh_tiles(length: int, log_weight: LogWeight, of_values: bool, of_sum: bool, call: Call) -> Any:
    """Multiply e^z in each tile of `length` keys by a weight, in Σ e^z v (`of_values`), in Σ e^z (`of_sum`), or both.

    A bias of log weight has this effect on both. On one of them alone it is a factor of the row.
    """
    biases, factors = [], []
    for z, bias in zip(masked_scores(call), split_maps(call.bias, call.q1.shape[1]), strict=True):
        starts = np.arange(0, z.shape[-1], length)
        lse, top = (f.reduceat(z, starts, axis=-1) for f in (np.logaddexp, np.maximum))
        more = np.where(np.isfinite(lse), log_weight(lse, top), 0.0)
        more = np.repeat(more, length, axis=-1)[..., : z.shape[-1]]
        biases.append(more if bias is None else more + bias)
        before, after = log_sums([z, z + more])
        factors.append(np.exp((after - before) * (of_values - of_sum)))
    return _scale_maps(call, *factors, **({"bias": np.concatenate(biases, axis=1)} if of_values else {}))


def _not_rescaled(_: Numpy, top: Numpy) -> Numpy:
    """Return the logarithm of what a tile's sums have too much: e^(m_old − m_new) of each later, larger maximum."""
    behind: Numpy = np.max(top, axis=-1, keepdims=True) - np.maximum.accumulate(top, axis=-1)
    return behind


ONLINE_AXIS = "online softmax"
"""The axis of deviations of an online softmax, of which there is one for each tile size."""
WRONG_WEIGHTS: tuple[tuple[str, str, tuple[LogWeight, bool, bool]], ...] = (
    ("splits_of_{}_merged_in_another_base", "Splits of {} keys merged by e^lse of a log-sum-exp to base 2.",
        (lambda lse, _: lse / math.log(2) - lse, True, True)),
    ("splits_of_{}_merged_in_base_2", "Splits of {} keys merged by 2^lse of a natural log-sum-exp.",
        (lambda lse, _: lse * math.log(2) - lse, True, True)),
    ("splits_of_{}_merged_without_sums", "Splits of {} keys merged by e^m of the maximum, without the sum.",
        (lambda lse, top: top - lse, True, True)),
    ("splits_of_{}_merged_without_weights", "Splits of {} keys merged by equal weights.",
        (lambda lse, _: -lse, True, True)),
    ("accumulator_not_rescaled_by_tiles_of_{}",
        "Online softmax by tiles of {} keys: the weighted sum of values is not multiplied by e^(m_old − m_new) where "
        "the maximum grows.", (_not_rescaled, True, False)),
    ("denominator_not_rescaled_by_tiles_of_{}",
        "Online softmax by tiles of {} keys: the sum of weights is not multiplied by e^(m_old − m_new) where the "
        "maximum grows.", (_not_rescaled, False, True)),
    ("sums_not_rescaled_by_tiles_of_{}",
        "Online softmax by tiles of {} keys: neither sum is multiplied by e^(m_old − m_new) where the maximum grows.",
        (_not_rescaled, True, True)),
)  # fmt: skip
"""(name and words for a length, the logarithm of a weight, whether it is in Σ e^z v, and whether in Σ e^z)"""

TILE_DEVIATIONS: tuple[Mistake, ...] = (
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
        in_attention(name.format(n), what.format(n), ONLINE_AXIS, partial(_weigh_tiles, n, *how))
        for name, what, how in WRONG_WEIGHTS
        for n in TILE_SIZES
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
