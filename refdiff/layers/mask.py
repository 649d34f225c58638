"""Which keys each query may attend to. True means "may attend".

With a cache the queries are the last T of S tokens, so the triangle is aligned at the bottom right:

    T = 2, S = 5        key 0 1 2 3 4
                query 3     ■ ■ ■ ■ ·
                query 4     ■ ■ ■ ■ ■

(The other alignment, top left, would let query 3 see key 0 alone. FlashAttention before 2.1 did that.)
"""

from __future__ import annotations

from typing import Any

from refdiff.arrays import Array, namespace


def causal_mask(queries: int, keys: int, *, xp: Any, device: Any = None) -> Array:
    """Let each query attend to itself and to earlier positions.

    Equation:
        M[t, s] = (s ≤ t + S − T)

    Used as:
        `causal_mask(T, S, xp=xp)`

    Shapes:
        T, S -> (T, S) boolean

    Raises:
        ValueError: there are fewer keys than queries.
    """
    if keys < queries:
        raise ValueError(f"causal_mask: keys: got {keys}, expected at least {queries}, the number of queries")
    t = xp.arange(queries, device=device)[:, None]
    s = xp.arange(keys, device=device)[None, :]
    return s <= t + (keys - queries)


def padding_mask(attention_mask: Array) -> Array:
    """Let every query attend to real tokens only.

    Equation:
        M[b, 0, 0, s] = (attention_mask[b, s] ≠ 0)

    Used as:
        `padding_mask(attention_mask)` together with `causal=True`

    Shapes:
        attention_mask (B, S) of 1 and 0, or boolean -> (B, 1, 1, S) boolean

    Raises:
        ValueError: `attention_mask` is not (B, S).
    """
    if attention_mask.ndim != 2:
        raise ValueError(f"padding_mask: attention_mask: got shape {tuple(attention_mask.shape)}, expected (B, S)")
    xp = namespace(attention_mask)
    return xp.astype(attention_mask, xp.bool)[:, None, None, :]


def packed_mask(position_ids: Array) -> Array:
    """Keep sequences packed in one batch item apart: a new one starts where positions do not go up by one.

    Equation:
        n_t = number of u ≤ t, u > 0, with p_u − p_{u−1} ≠ 1;  M[b, 0, t, s] = (n_t = n_s)

    Used as:
        `packed_mask(position_ids)` together with `causal=True`

    Shapes:
        position_ids (B, T) integers -> (B, 1, T, T) boolean

    Raises:
        ValueError: `position_ids` are not (B, T).
    """
    if position_ids.ndim != 2:
        raise ValueError(f"packed_mask: position_ids: got shape {tuple(position_ids.shape)}, expected (B, T)")
    xp = namespace(position_ids)
    # at u = 0 the last position stands for the one before: whether that counts is the same for all t
    breaks = position_ids - xp.roll(position_ids, 1, axis=1) != 1
    number = xp.cumulative_sum(xp.astype(breaks, xp.int64), axis=1)
    return number[:, None, :, None] == number[:, None, None, :]
