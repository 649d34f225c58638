"""When two results are the same: every row within 10⁻¹⁰ of its own largest entry."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

TOLERANCE = 1e-10
# every field of every class that holds numbers, and which axis counts the positions of the prompt (None: no such axis)
FIELDS = {"last_hidden_state": 1, "logits": 1, "start_logits": 1, "end_logits": 1, "loss": None}


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, as a part of the largest entry in its row (the last axis)."""
    if want.ndim == 0:
        return float(abs(got - want) / (abs(want) or 1.0))
    scale = np.abs(want).max(axis=-1, keepdims=True)
    return float((np.abs(got - want) / np.where(scale == 0, 1.0, scale)).max())


def compare(got: Any, want: np.ndarray, what: str, seen: np.ndarray | None = None, axis: int = 1) -> None:
    """Fail unless `got` is `want`; `seen` (batch, positions) picks the positions that count, found at `axis`."""
    got = np.asarray(got)
    assert got.dtype == want.dtype == np.float64, f"{what}: {got.dtype} and {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {got.shape}, not {want.shape}"
    if seen is not None:
        got, want = np.moveaxis(got, axis, 1)[seen], np.moveaxis(want, axis, 1)[seen]
    assert want.size > 0, f"{what}: nothing to compare"
    assert np.isfinite(want).all(), f"{what}: transformers itself gives {want}"
    difference = relative(got, want)
    assert difference <= TOLERANCE, f"{what}: relative difference {difference:.2e}"


def compare_outputs(
    got: Any, want: SimpleNamespace, seen: np.ndarray | None = None, pooled: np.ndarray | bool | None = None
) -> list[str]:
    """Compare every field that transformers filled, and say which.

    `pooled`: the logits have one row a sequence, of which all count (True) or those given.
    """
    compared = []
    for name, axis in FIELDS.items():
        expected = getattr(want, name, None)
        if expected is None:
            continue
        positions = None if axis is None else seen
        if name == "logits" and pooled is not None and pooled is not False:
            rows = np.full(len(expected), True) if pooled is True else pooled
            if rows.any():
                compare(np.asarray(got.logits)[rows], expected[rows], name)
                compared.append(name)
            continue
        if name in ("start_logits", "end_logits"):
            # one number a position: hold each to the largest start or end of its row
            shown = True if seen is None else np.tile(seen, 2)
            given, expected = (np.concatenate([x.start_logits, x.end_logits], axis=1) for x in (got, want))
            compare(np.where(shown, given, 0.0), np.where(shown, expected, 0.0), name)
        else:
            compare(getattr(got, name), expected, name, positions)
        compared.append(name)
    for name, axis in (("hidden_states", 1), ("attentions", 2)):
        expected = getattr(want, name, None)
        if expected is None:
            continue
        given = getattr(got, name)
        assert len(given) == len(expected) > 0, f"{name}: {len(given)} of them, not {len(expected)}"
        for layer, (one, other) in enumerate(zip(given, expected, strict=True)):
            compare(one, other, f"{name}[{layer}]", seen, axis)
        compared.append(name)
    assert compared, "nothing was compared"
    return compared
