"""Reorderings of heads and rows, of which conversions between variants consist."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import to_numpy
from refdiff.layers.rope_frequencies import rope_frequencies
from refdiff.model.variants.variant import Config, Weights

IntArray = NDArray[np.integer]


def move_heads(p: Weights, config: Config, *, inverse: bool) -> Weights:
    """Move heads i and i + n/2 of q, k and v to 2i and 2i + 1, and RoPE's halves to neighbors; or the inverse."""
    rotated, straight = interleaved(config), np.arange(config.head_dim)
    moved = dict(p)
    for name, heads, dims in (
        ("q_proj", config.num_attention_heads, rotated),
        ("k_proj", config.num_key_value_heads, rotated),
        ("v_proj", config.num_key_value_heads, straight),
    ):
        order = np.arange(heads).reshape(2, heads // 2).T.reshape(-1)
        moved[name] = rows(p[name], np.argsort(order), np.argsort(dims)) if inverse else rows(p[name], order, dims)
    return moved


def interleaved(config: Config) -> IntArray:
    """Return the index in halves of each dimension of an interleaved head; dimensions without rotation stay."""
    frequencies, _ = rope_frequencies(config.rope_parameters, config.head_dim, config.max_position_embeddings)
    n = len(frequencies)
    return np.concatenate([np.arange(2 * n).reshape(2, n).T.reshape(-1), np.arange(2 * n, config.head_dim)])


def rows(linear: Weights, heads: IntArray, dims: IntArray) -> Weights:
    """Select the rows of the given heads and dimensions, of weight and bias."""
    selected = (heads[:, None] * len(dims) + dims).reshape(-1)
    return {name: to_numpy(array)[selected] for name, array in linear.items()}


def scale(linear: Weights, size: float) -> Weights:
    """Multiply weight and bias."""
    return linear if size == 1 else {name: array * array.dtype.type(size) for name, array in linear.items()}


def size_for_epsilon(target: float, source: float) -> float:
    """Return the factor of the values for which a norm with ε = target equals one with ε = source of the unscaled.

    Raises:
        ValueError: one of them is 0, and the other is not.
    """
    if target == source:
        return 1.0
    if min(target, source) == 0:
        raise ValueError(
            f"cannot convert a norm with ε = {source} to one with ε = {target} exactly, where one of them is 0; "
            "check rms_norm_eps"
        )
    return math.sqrt(target / source)
