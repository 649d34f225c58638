"""`diff_attention` over tiles of queries: the same numbers, with memory for some rows of the scores at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from refdiff.backends import Ops, overlay
from refdiff.oracle.truth.attention_operands import AttentionOperands

Numpy = np.ndarray[Any, Any]
Tile = Callable[..., Numpy]
SCORES = 2**18
"""Of one map in a tile: 2 MiB in float64, which stay in a core's cache. No case with fewer is tiled."""


def tiled(ops: Ops, around: Callable[[Tile], Tile] = lambda layer: layer) -> Ops:
    """Replace `diff_attention` of `ops` by one that goes from tile to tile of queries.

    A causal tile has no keys after its last query.

    Args:
        around: what wraps the layer that computes one tile.
    """

    def wrap(name: str, layer: Callable[..., Any]) -> Callable[..., Any]:
        return _by_tiles(layer, around(layer), ops) if name == "diff_attention" else layer

    return overlay(ops, wrap)


def _by_tiles(layer: Callable[..., Any], tile: Tile, parts: Ops) -> Callable[..., Any]:
    @functools.wraps(layer)
    def call(
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
        ops: Ops = parts,
    ) -> Numpy:
        (B, H, T, _), S = q1.shape, k1.shape[2]
        if causal and T > S:  # the layer refuses it
            return np.asarray(layer(q1, k1, q2, k2, v, lambda_, mask, bias, causal=causal, ops=ops))
        found = []
        for rows in tiles(B * H * S, T):
            end = S - T + rows.stop if causal and T > 1 else S
            found.append(
                tile(
                    q1[:, :, rows],
                    k1[:, :, :end],
                    q2[:, :, rows],
                    k2[:, :, :end],
                    v[:, :, :end],
                    _part(lambda_, rows, slice(None), T, 1),
                    _part(mask, rows, slice(end), T, S),
                    _part(bias, rows, slice(end), T, S),
                    causal=causal,
                    ops=ops,
                )
            )
        return found[0] if len(found) == 1 else np.concatenate(found, axis=2)

    return call


def tiles(scores_of_query: int, queries: int) -> Iterator[slice]:
    """Cut queries into stretches of about `SCORES` scores; at least one stretch, which may be empty."""
    step = max(1, SCORES // max(1, scores_of_query))
    for start in range(0, max(1, queries), step):
        yield slice(start, min(start + step, queries))


def _part(x: Any, rows: slice, keys: slice, T: int, S: int) -> Any:
    """These rows and keys of what broadcasts to (…, T, S)."""
    if x is None or x.ndim == 0:
        return x
    if x.ndim > 1 and x.shape[-2] == T:
        x = x[..., rows, :]
    return x[..., keys] if x.shape[-1] == S else x


def operand_tiles(s: AttentionOperands) -> Iterator[AttentionOperands]:
    """Cut operands into tiles of queries, each with all keys and a mask that says what they may see."""
    (B, H, T, _), S = s.q1.shape, s.k1.shape[2]
    if B * H * S * T <= SCORES:
        yield s
        return
    for rows in tiles(B * H * S, T):
        see = s.see[:, :, rows]
        part = {"q1": s.q1[:, :, rows], "q2": s.q2[:, :, rows], "bias": _part(s.bias, rows, slice(None), T, S)}
        lambda_ = _part(s.lambda_full, rows, slice(None), T, 1)
        yield replace(s, **part, lambda_full=lambda_, see=see, mask=see, causal=False)
