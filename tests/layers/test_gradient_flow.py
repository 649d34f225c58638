"""Appendix G of Ye et al. 2024: the gradients of one differential head and of one plain head of the same size.

Eq. 7 and 9 are transcribed here, held to the derivatives of the layers, and then measured at initialization. What the
measurement says of the claim that the scale 1 − λ_init aligns the gradients with those of a Transformer:

- Without norm and scale, the gradients of W_Q1 and W_K1 are √2 times the plain ones, those of W_Q2 and W_K2 √2 λ times,
  those of W_V and W_O about 1 − λ times: constants, as the appendix says (A ≐ A₁ ≐ A₂).
- The norm divides all of them by the size of (A₁ − λA₂) V, about 1 − λ times that of A V. The scale takes 1 − λ_init
  back, so that the gradients of W_Q1 and W_K1 are the same at every depth; without it they grow with λ_init, up to
  fourfold. Those of W_V and W_O would be the same at every depth without the scale, and fall as 1 − λ_init with it.
- The division by the size of A V stays. At initialization attention is uniform, and that size is the values' over √n:
  the gradients are larger than the plain ones by about √n over the values' size, scale or not. The authors give this
  as the reason why DIFF V2 has no norm.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import (
    diff_attention,
    diff_attention_vjp,
    diff_heads_paper,
    diff_heads_paper_vjp,
    lambda_init,
    plain_heads,
    plain_heads_vjp,
)
from tests.layers.inputs import SEEDS
from tests.tolerances import close

# in thousandths: a subnormal λ would leave gradients with no digits to compare
LAMBDAS = st.integers(-500, 1500).map(lambda n: n / 1000)
NAMES = ("W_Q1", "W_Q2", "W_K1", "W_K2", "W_V", "W_O")


def draw(rng: np.random.Generator, N: int, D: int, d: int, deviation: float) -> tuple[np.ndarray, dict, np.ndarray]:
    """X (N, D) as a norm leaves it, the parameters of one head, and the gradient of the loss by the output (N, D)."""
    shapes = dict.fromkeys(NAMES[:4], (D, d)) | {"W_V": (D, 2 * d), "W_O": (2 * d, D)}
    weights = {name: rng.normal(size=shape) * deviation for name, shape in shapes.items()}
    return rng.normal(size=(N, D)), weights, rng.normal(size=(N, D))


def streams(x: np.ndarray, w: dict) -> list[np.ndarray]:
    """Q₁, Q₂, K₁, K₂ and V as heads, (1, 1, N, ·)."""
    return [(x @ w[name])[None, None] for name in NAMES[:5]]


def softmax(z: np.ndarray) -> np.ndarray:
    z = np.where(np.tri(len(z), dtype=bool), z, -np.inf)
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def gradients_of_differential(
    x: np.ndarray, w: dict, g: np.ndarray, lambda_: float, scale: float | None
) -> dict[str, np.ndarray]:
    """Eq. 7; with a scale, GroupNorm and the scale are differentiated as well (ε = 1e-5)."""
    q1, q2, k1, k2, v = (a[0, 0] for a in streams(x, w))
    d, J = q1.shape[1], np.ones((len(x), len(x)))
    a1, a2 = softmax(q1 @ k1.T / math.sqrt(d)), softmax(q2 @ k2.T / math.sqrt(d))
    head, g_head = (a1 - lambda_ * a2) @ v, g @ w["W_O"].T
    if scale is not None:
        size = np.sqrt(np.mean(head**2, axis=-1, keepdims=True) + 1e-5)
        g_head = scale / size * (g_head - head * np.mean(head * g_head, axis=-1, keepdims=True) / size**2)
        head = scale * head / size
    z1 = a1 * (g_head @ v.T - (a1 * (g_head @ v.T)) @ J) / math.sqrt(d)
    z2 = -lambda_ * a2 * (g_head @ v.T - (a2 * (g_head @ v.T)) @ J) / math.sqrt(d)
    return {
        "W_O": head.T @ g, "W_V": x.T @ (a1 - lambda_ * a2).T @ g_head,
        "W_Q1": x.T @ z1 @ k1, "W_Q2": x.T @ z2 @ k2, "W_K1": x.T @ z1.T @ q1, "W_K2": x.T @ z2.T @ q2,
    }  # fmt: skip


def gradients_of_plain(x: np.ndarray, w: dict, g: np.ndarray) -> dict[str, np.ndarray]:
    """Eq. 9."""
    q1, q2, k1, k2, v = (a[0, 0] for a in streams(x, w))
    d, J = q1.shape[1], np.ones((len(x), len(x)))
    a = softmax((q1 @ k1.T + q2 @ k2.T) / math.sqrt(2 * d))
    g_head = g @ w["W_O"].T
    z = a * (g_head @ v.T - (a * (g_head @ v.T)) @ J) / math.sqrt(2 * d)
    return {
        "W_O": (a @ v).T @ g, "W_V": x.T @ a.T @ g_head,
        "W_Q1": x.T @ z @ k1, "W_Q2": x.T @ z @ k2, "W_K1": x.T @ z.T @ q1, "W_K2": x.T @ z.T @ q2,
    }  # fmt: skip


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected) == set(NAMES)
    for name in NAMES:
        close(found[name], expected[name], 1e-10)


@given(SEEDS, LAMBDAS)
def test_eq_7_is_the_derivative_of_the_layer(rng: np.random.Generator, lambda_: float) -> None:
    x, w, g = draw(rng, 7, 5, 3, 1.0)
    q1, q2, k1, k2, v = streams(x, w)
    maps = (q1, k1, q2, k2, v, np.array(lambda_))
    by_layer = diff_attention_vjp((g @ w["W_O"].T)[None, None], *maps)[:5]
    found = dict(zip(("W_Q1", "W_K1", "W_Q2", "W_K2", "W_V"), (x.T @ d[0, 0] for d in by_layer), strict=True))
    found["W_O"] = diff_attention(*maps)[0, 0].T @ g
    same(found, gradients_of_differential(x, w, g, lambda_, None))


@given(SEEDS, st.floats(0, 0.8), st.floats(-0.1, 0.1).map(lambda x: round(x, 9)))  # subnormal λ have few digits
def test_eq_7_with_norm_and_scale(rng: np.random.Generator, start: float, learned: float) -> None:
    x, w, g = draw(rng, 7, 5, 3, 1.0)
    q1, q2, k1, k2, v = streams(x, w)
    q, k = np.concatenate([q1, q2], axis=1), np.concatenate([k1, k2], axis=1)
    heads = (q, k, v, np.array(start + learned), np.ones(v.shape[-1]), start, 1e-5)
    by_q, by_k, by_v = diff_heads_paper_vjp((g @ w["W_O"].T)[None], *heads)[:3]
    by_layer = (by_q[0, 0], by_q[0, 1], by_k[0, 0], by_k[0, 1], by_v[0, 0])
    found = dict(zip(NAMES, (x.T @ d for d in by_layer), strict=False))
    found["W_O"] = diff_heads_paper(*heads)[0].T @ g
    same(found, gradients_of_differential(x, w, g, start + learned, 1 - start))


@given(SEEDS)
def test_eq_9_is_the_derivative_of_the_layer(rng: np.random.Generator) -> None:
    x, w, g = draw(rng, 7, 5, 3, 1.0)
    q1, q2, k1, k2, v = streams(x, w)
    q, k = np.concatenate([q1, q2], axis=-1), np.concatenate([k1, k2], axis=-1)
    by_q, by_k, by_v = (x.T @ d[0, 0] for d in plain_heads_vjp((g @ w["W_O"].T)[None], q, k, v))
    d = q1.shape[-1]
    found = {"W_Q1": by_q[:, :d], "W_Q2": by_q[:, d:], "W_K1": by_k[:, :d], "W_K2": by_k[:, d:], "W_V": by_v}
    same({**found, "W_O": plain_heads(q, k, v)[0].T @ g}, gradients_of_plain(x, w, g))


def measured(n: int, layer: int) -> dict[str, dict[str, float]]:
    """How many times larger the gradients of a differential head are at initialization, on average over three draws."""
    start = lambda_init(layer)
    variants = {"no norm": None, "norm": 1.0, "norm, 1 − λ_init": 1 - start}
    ratios: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in NAMES} for kind in variants}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x, w, g = draw(rng, n, 256, 16, 0.02)
        # four vectors of deviation 0.1: λ starts within a few hundredths of λ_init
        vectors = rng.normal(size=(4, 16)) * 0.1
        lambda_ = start + math.exp(vectors[0] @ vectors[1]) - math.exp(vectors[2] @ vectors[3])
        of_plain = gradients_of_plain(x, w, g)
        for kind, scale in variants.items():
            of_differential = gradients_of_differential(x, w, g, lambda_, scale)
            for name in NAMES:
                ratios[kind][name].append(float(np.linalg.norm(of_differential[name]) / np.linalg.norm(of_plain[name])))
    return {kind: {name: float(np.mean(values)) for name, values in row.items()} for kind, row in ratios.items()}


@pytest.mark.slow
@pytest.mark.no_arrays
def test_scale_of_gradients_at_initialization() -> None:
    depths = [0, 3, 27]
    table = {(n, layer): measured(n, layer) for n in (32, 128) for layer in depths}
    for (_, layer), rows in table.items():
        start, bare = lambda_init(layer), rows["no norm"]
        for first, second in (("W_Q1", "W_Q2"), ("W_K1", "W_K2")):
            assert abs(bare[first] - math.sqrt(2)) < 0.1
            assert abs(bare[second] - math.sqrt(2) * start) < 0.1
        for name in ("W_V", "W_O"):
            assert abs(bare[name] - (1 - start)) < 0.1
    for n in (32, 128):
        first, last = table[n, depths[0]], table[n, depths[-1]]
        for name in ("W_Q1", "W_K1"):
            assert 0.7 < last["norm, 1 − λ_init"][name] / first["norm, 1 − λ_init"][name] < 1.1
            assert last["norm"][name] / first["norm"][name] > 2.8
        # four times the tokens: twice the gradients
        assert table[128, 0]["norm, 1 − λ_init"]["W_Q1"] / table[32, 0]["norm, 1 − λ_init"]["W_Q1"] > 1.6
