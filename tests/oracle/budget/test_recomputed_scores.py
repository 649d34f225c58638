"""A backward pass may add the products of its scores in another order than the forward pass, as tiled kernels do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, budget

SINGLE = np.float32


def _scores(spec: Spec, q: np.ndarray, k: np.ndarray, at: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of one order of summation in float32, and the derivative of the softcap."""
    z = np.zeros((*q.shape[:-1], k.shape[-2]), dtype=SINGLE)
    for i in at:
        z += q[..., :, None, i] * k[..., None, :, i]
    z *= SINGLE(spec.head_dim**-0.5)
    if spec.softcap is None:
        return z, np.ones_like(z)
    tanh = np.tanh(z / SINGLE(spec.softcap))
    return SINGLE(spec.softcap) * tanh, 1 - tanh * tanh


def _kernel(spec: Spec, inputs: dict[str, np.ndarray], dout: np.ndarray) -> dict[str, np.ndarray]:
    """Plain attention in float32 without a mask, whose backward pass adds products in reverse."""
    q, k, v, order = inputs["q"], inputs["k"], inputs["v"], list(range(spec.head_dim))
    z, _ = _scores(spec, q, k, order)
    sinks = inputs["sinks"][None, :, None, None] if spec.sinks else np.full((1, 1, 1, 1), -np.inf, dtype=SINGLE)
    top = np.maximum(z.max(axis=-1, keepdims=True), sinks)
    lse = top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True) + np.exp(sinks - top))
    out = np.exp(z - lse) @ v
    again, slope = _scores(spec, q, k, order[::-1])
    p = np.exp(again - lse)
    ds = p * (dout @ v.swapaxes(-1, -2) - (dout * out).sum(axis=-1, keepdims=True)) * slope
    unit = SINGLE(spec.head_dim**-0.5)
    transposed = ds.swapaxes(-1, -2)
    return {"out": out, "dq": ds @ k * unit, "dk": transposed @ q * unit, "dv": p.swapaxes(-1, -2) @ dout}


@pytest.mark.parametrize("fields", [{"softcap": 20.0}, {"sinks": True}, {"softcap": 20.0, "sinks": True}], ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_scores_whose_products_cancel(seed: int, fields: dict[str, Any]) -> None:
    """A score of about 5 is the sum of products of 100, which neither a sink nor a softcap changes."""
    spec = Spec.preset("attention", query_heads=4, key_heads=4, head_dim=32, causal="none", **fields)
    random = np.random.default_rng(seed)
    q, k, v = (random.normal(size=(4, 4, n, 32)) for n in (1, 2, 2))
    q *= 100
    k -= (k @ q.swapaxes(-1, -2) - 5 * random.normal(size=(4, 4, 2, 1))) * q / np.sum(q * q, axis=-1, keepdims=True)
    dout = random.normal(size=q.shape).astype(SINGLE)
    inputs = {"q": q.astype(SINGLE), "k": k.astype(SINGLE), "v": v.astype(SINGLE)}
    if spec.sinks:
        inputs["sinks"] = np.full(4, 2.0, dtype=SINGLE)
    verdict = budget(spec, inputs, "float32", dout=dout).judge(_kernel(spec, inputs, dout))
    assert verdict, str(verdict)
