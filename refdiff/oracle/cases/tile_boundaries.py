"""Queries that look at the borders of tiles: what a kernel loses, counts twice or forgets to rescale there shows.

A fused kernel goes through the keys in tiles of 16 to 128. Each query here is turned towards one key, the first or the
last that it sees or one beside a border, on which most rows then have most of their weight. So the row's largest score
comes in an early tile in one row and in a late one in the next, and at different keys in the two maps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.inputs.sequences import Inputs, sequences
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_mask import attention_mask
from refdiff.oracle.truth.attention_operands import angles, preparation, rotate, stages
from refdiff.oracle.truth.head_indices import head_indices

Numpy = np.ndarray[Any, Any]
BORDER = 64
"""Keys s with s mod 64 = 63 or 0 are looked at: every tile of 16, 32 or 64 keys ends there, and one of 128 at half."""
FAR = 300.0
"""By how much one row of five is raised: exp of what it is above most keys is no number of float32."""


def aim_at_tiles(spec: Spec, inputs: Inputs) -> Numpy:
    """Return q turned so that each row of each map has a large score, from the noise that q is and the keys.

    Equation:
        R q' = q / 2 + g √d k̂_s / ‖k_s‖, R being RoPE: the score of key s is larger by g = 1 + log S, or by 300

    Shapes:
        core inputs, float64 -> (B, H, T, d)
    """
    aimed = np.array(inputs["q"])
    for part in sequences(inputs):
        if 0 not in part.inputs["q"].shape and 0 not in part.inputs["k"].shape:
            aimed[part.batch, :, part.queries] = _dense(spec, part.inputs)
    return aimed


def tile_boundary_keys(see: Numpy) -> Numpy:
    """The keys that a query may be aimed at: the first and the last that it sees, and those beside borders.

    Shapes:
        (S,) boolean -> indices; none where it sees nothing
    """
    keys = np.flatnonzero(see)
    beside = keys[np.isin(keys % BORDER, (BORDER - 1, 0))]
    return np.unique(np.concatenate([keys[:1], beside, keys[-1:]]))


def _dense(spec: Spec, inputs: Inputs) -> Numpy:
    q, k, ops, w = inputs["q"], inputs["k"], ops_for(), head_indices(spec)
    turns = angles(spec, inputs, ops)
    q, k = (stages(spec, {**inputs, "q": q, "k": k}, name, turns, ops)[-1] for name in "qk")
    B, H, T, d = q.shape
    scale = 1 / math.sqrt(d) if spec.scale is None else spec.scale
    key_of = np.zeros(H, dtype=np.int64)
    key_of[w.q1], key_of[w.q2] = w.k1, w.k2
    see = np.broadcast_to(attention_mask(spec, inputs), (B, spec.heads, T, k.shape[2]))[:, 0]
    aimed = 0.5 * q
    for b, t in np.ndindex(B, T):
        at = tile_boundary_keys(see[b, t])
        for head in range(H if len(at) else 0):
            n = 5 * b + t + 3 * head
            key = k[b, key_of[head], at[n % len(at)]]
            gain = FAR if n % 5 == 4 else 1 + math.log(k.shape[2])
            aimed[b, head, t] += gain / scale * key / np.sum(key * key)
    for step in reversed(preparation(spec)):
        if step == "norm":  # of any length, and so it is the direction alone that counts
            aimed = aimed / inputs.get("q_norm_weight", 1.0)
        else:
            cos, sin = turns["q"]
            aimed = rotate(spec, aimed, cos, -sin, ops)
    return aimed
