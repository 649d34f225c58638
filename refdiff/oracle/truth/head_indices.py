"""Which heads of q, k and v an output head is made of, written as numbers: any pairing, grouping and ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.oracle.spec import Spec

Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class HeadIndices:
    """For each of the h output heads: its two query heads, its two key heads, its head among the (joined) values."""

    q1: Numbers
    q2: Numbers
    k1: Numbers
    k2: Numbers
    v: Numbers


def head_indices(spec: Spec) -> HeadIndices:
    """Return the heads that `spec` puts together.

    `q[:, w.q1]`, `k[:, w.k1]`, `q[:, w.q2]`, `k[:, w.k2]`, `join_values(spec, v)[:, w.v]` are the five inputs of
    `layers.diff_attention`, all with h heads; of plain attention the second map, with λ = 0, is the first. For the
    wirings that the layers have, it says what they do; a test holds them together.

    Shapes:
        five times (h,)
    """
    h, r, pairs = spec.heads, spec.ratio, spec.key_groups
    i = np.arange(h)
    noise = i // r
    if spec.is_plain:
        q1 = q2 = i
    elif spec.pairing == "halves":
        q1, q2 = i, h + noise
    else:
        q1, q2 = noise * (r + 1) + i % r, noise * (r + 1) + r
    group = i // (h // pairs) if spec.group_order == "blocks" else i % pairs
    if spec.keys == "shared":
        return HeadIndices(q1, q2, group, group, group)
    if spec.gqa == "repeat_then_pair":
        n = spec.query_heads // spec.key_heads
        return HeadIndices(q1, q2, q1 // n, q2 // n, group)
    if spec.pairing == "halves":
        return HeadIndices(q1, q2, group, group + pairs, group)
    return HeadIndices(q1, q2, 2 * group, 2 * group + 1, group)


def value_heads(spec: Spec) -> tuple[Numbers, ...]:
    """For each part of a joined value, the heads of v that it is taken from; one part where nothing is joined."""
    j = np.arange(spec.key_groups)
    if spec.values == "halves":
        return j, j + spec.key_groups
    return (2 * j, 2 * j + 1) if spec.values == "interleaved" else (j,)
