"""Maps → the few hundred kilobytes that a page carries: what is not masked, in 16 bits a weight."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.viz.maps import AttentionMaps

STEPS = 65535
"""A weight w, between 0 and 1, is kept as round(w · STEPS)."""


def packed(maps: AttentionMaps) -> dict[str, Any]:
    """Put the maps into what JSON can hold: A₁ and A₂ (the reader subtracts), and how far the result is from them.

    Equation:
        kept: round(65535 A) of the lower triangle, row by row, little-endian uint16 in base64; `error` is the largest
        distance between a weight, or A₁ − λ A₂, and what the reader computes from what is kept

    Shapes:
        first, second: L · P · T (T + 1) / 2 numbers; lambdas: (L,), in v2 (L, P, T), None in a Llama

    Raises:
        ValueError: the maps are not causal and square, or hold what is no softmax weight.
    """
    L, P, T, S = maps.first.shape
    if T != S:
        raise ValueError(
            f"the maps are of {T} queries and {S} keys: a page shows a text that is read in one pass, T = S"
        )
    rows, columns = np.tril_indices(T)
    kept = [m[:, :, rows, columns] for m in (maps.first, maps.second) if m is not None]
    for m in kept:
        if not (np.isfinite(m).all() and m.min() >= 0 and m.max() <= 1 + 1e-4):
            raise ValueError(
                "a map has a weight that is not between 0 and 1: check the model's weights, or compute in float32"
            )
    if not np.isfinite(maps.difference).all():
        raise ValueError("A₁ − λ A₂ has numbers that are not finite: check the model's λ, or compute in float32")
    if any(np.triu(m, 1).any() for m in (maps.first, maps.second) if m is not None):
        raise ValueError("a query looks at a later key: a page shows causal attention")
    whole = [np.rint(np.minimum(m, 1).astype(np.float64) * STEPS).astype("<u2") for m in kept]
    read = [w / STEPS for w in whole]
    difference = maps.difference[:, :, rows, columns]
    error = max(float(np.abs(a - b).max()) for a, b in zip(read, kept, strict=True))
    lambdas: Any = None
    if maps.lambdas is not None:
        lambdas = maps.lambdas.astype(np.float64)
        per_row = lambdas[:, None, None] if lambdas.ndim == 1 else lambdas[:, :, rows]
        error = max(error, float(np.abs(read[0] - per_row * read[1] - difference).max()))
    return {
        "layers": L,
        "pairs": P,
        "tokens": list(maps.tokens),
        "first": _base64(whole[0]),
        "second": _base64(whole[1]) if maps.second is not None else None,
        "lambdas": None if lambdas is None else lambdas.tolist(),
        "starts": None if maps.starts is None else maps.starts.tolist(),
        "error": error,
    }


def _base64(values: NDArray[np.uint16]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")
