"""Pack maps for a page: the lower triangles, with 16 bits per weight."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.viz.maps import AttentionMaps

STEPS = 65535
"""A weight w from 0 to 1 is stored as round(w · STEPS)."""


def packed(maps: AttentionMaps) -> dict[str, Any]:
    """Return the maps as JSON values. The page computes the difference from A₁ and A₂.

    first, second: round(65535 A) of the lower triangles, row by row, as base64 of little-endian uint16.
    error: the largest error of A₁, A₂ and A₁ − λ A₂ when they are computed from these.

    Shapes:
        first, second: L · P · T (T + 1) / 2 numbers; lambdas: (L,), in v2 (L, P, T), None in a Llama

    Raises:
        ValueError: the maps are not causal and square, or have numbers that are no softmax weights.
    """
    L, P, T, S = maps.first.shape
    if T != S:
        raise ValueError(
            f"maps: got {T} queries and {S} keys, expected as many queries as keys; run the model on the whole text"
        )
    rows, columns = np.tril_indices(T)
    triangles = [m[:, :, rows, columns] for m in (maps.first, maps.second) if m is not None]
    for m in triangles:
        if not (np.isfinite(m).all() and m.min() >= 0 and m.max() <= 1 + 1e-4):
            raise ValueError(
                "maps: got a weight that is not between 0 and 1; check the model's weights, or compute in float32"
            )
    if not np.isfinite(maps.difference).all():
        raise ValueError("maps: A₁ − λ A₂ has numbers that are not finite; check the model's λ, or compute in float32")
    if any(np.triu(m, 1).any() for m in (maps.first, maps.second) if m is not None):
        raise ValueError("maps: got a query that attends to a later key, expected causal attention")
    integers = [np.rint(np.minimum(m, 1).astype(np.float64) * STEPS).astype("<u2") for m in triangles]
    decoded = [i / STEPS for i in integers]
    difference = maps.difference[:, :, rows, columns]
    error = max(float(np.abs(a - b).max()) for a, b in zip(decoded, triangles, strict=True))
    lambdas: Any = None
    if maps.lambdas is not None:
        lambdas = maps.lambdas.astype(np.float64)
        per_row = lambdas[:, None, None] if lambdas.ndim == 1 else lambdas[:, :, rows]
        error = max(error, float(np.abs(decoded[0] - per_row * decoded[1] - difference).max()))
    return {
        "layers": L,
        "pairs": P,
        "tokens": list(maps.tokens),
        "first": _base64(integers[0]),
        "second": _base64(integers[1]) if maps.second is not None else None,
        "lambdas": None if lambdas is None else lambdas.tolist(),
        "starts": None if maps.starts is None else maps.starts.tolist(),
        "error": error,
    }


def _base64(values: NDArray[np.uint16]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")
