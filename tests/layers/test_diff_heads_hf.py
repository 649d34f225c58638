"""v1 as in DiffLlama: heads i and i + H/2 are a pair."""

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.layers import diff_heads_hf, value_pairs_hf
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS
from tests.layers.places import Case
from tests.tolerances import EXACT, FLOAT64, close

RNG = np.random.default_rng(37)
B, T, S, d = 2, 5, 7, 3
H, K = 12, 4  # three query heads to a key head
LAMBDA, START, EPS = np.array(0.7), 0.35, 1e-5


def inputs(rng: np.random.Generator, H: int = H, K: int = K, queries: int = T, keys: int = S) -> list[np.ndarray]:
    """q, k and v, the values not yet joined, and small enough for ε to matter."""
    q, k = rng.normal(size=(B, H, queries, d)), rng.normal(size=(B, K, keys, d))
    v = rng.normal(size=(B, K, keys, d)) * 10.0 ** rng.uniform(-4, 1, size=(B, K, 1, 1))
    return [q, k, v]


def heads(q: np.ndarray, k: np.ndarray, v: np.ndarray, *more: Any, **options: Any) -> np.ndarray:
    """The layer, with values as `v_proj` gives them."""
    settings = {"lambda_": LAMBDA, "lambda_init": START, "eps": EPS} | options
    return diff_heads_hf(q, k, value_pairs_hf(v), settings.pop("lambda_"), settings.pop("lambda_init"),
                         settings.pop("eps"), *more, **settings)  # fmt: skip


Q, KEYS, V = inputs(RNG)
JOINED = value_pairs_hf(V)
MASK = RNG.random((B, H, T, S)) < 0.7
MASK[0, :, 1] = False
CASES = [
    Case("values", value_pairs_hf, (V,)),
    Case("causal", diff_heads_hf, (Q, KEYS, JOINED, LAMBDA, START, EPS)),
    Case("not causal", diff_heads_hf, (Q, KEYS, JOINED, LAMBDA, START, EPS), {"causal": False}),
    Case("mask and bias", diff_heads_hf, (Q, KEYS, JOINED, LAMBDA, START, EPS, MASK, RNG.normal(size=(T, S)))),
    Case("one token", diff_heads_hf, (Q[:, :, :1], KEYS[:, :, :1], JOINED[:, :, :1], LAMBDA, START, EPS)),
    Case("λ by head", diff_heads_hf, (Q, KEYS, JOINED, RNG.normal(size=(H // 2, 1, 1)), START, EPS)),
    Case("empty", diff_heads_hf, (Q[:0], KEYS[:0], JOINED[:0], LAMBDA, START, EPS)),
]


def test_values_by_hand() -> None:
    v = np.array([[[[0.0, 1.0]], [[2.0, 3.0]], [[4.0, 5.0]], [[6.0, 7.0]]]])
    close(value_pairs_hf(v), np.array([[[[0.0, 1.0, 4.0, 5.0]], [[2.0, 3.0, 6.0, 7.0]]]]), EXACT)


def test_by_hand() -> None:
    # one token sees itself alone: A₁ = A₂ = 1, the head is 0.5 · (1, 7), its mean square 25 / 4
    one, v = np.ones((1, 2, 1, 1)), np.array([[[[1.0]], [[7.0]]]])
    out = heads(one, one, v, lambda_=np.array(0.5), lambda_init=0.2, eps=0.0)
    close(out, np.array([[[0.8 * 0.2, 0.8 * 1.4]]]), FLOAT64)
    # with ε = 75 / 4 the root doubles
    out = heads(one, one, v, lambda_=np.array(0.5), lambda_init=0.2, eps=75 / 4)
    close(out, np.array([[[0.4 * 0.2, 0.4 * 1.4]]]), FLOAT64)
    # λ = 2: the head turns over
    out = heads(one, one, v, lambda_=np.array(2.0), lambda_init=0.0, eps=0.0)
    close(out, np.array([[[-0.2, -1.4]]]), FLOAT64)


def test_pairing_by_hand() -> None:
    # q₀ sees only key 0, q₁ only key 1, q₂ both, q₃ key 1: scores 0 or −1e4; d = 1, H = 4, K = 2
    pick = np.array([[[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]], [[0.0, 1.0]]]]) * 1e4
    k = np.repeat(np.eye(2)[None, None], 2, axis=1)
    v = np.array([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]])
    out = heads(pick, k, v, lambda_=np.array(1.0), lambda_init=0.0, eps=1.0, causal=False)
    # pair 0: q₀ − q₂ = (1, 0) − (1/2, 1/2) = (1/2, −1/2); all four values fall by 2 from key to key: −1 each
    # pair 1: q₁ − q₃ = 0
    close(out, np.array([[[-1.0, -1, -1, -1, 0, 0, 0, 0]]]) / math.sqrt(2), FLOAT64)


@settings(max_examples=settings().max_examples // 3)
@given(SEEDS, st.booleans(), st.sampled_from([1e-12, 1e-5, 0.1]))
def test_precision(rng: np.random.Generator, causal: bool, eps: float) -> None:
    H, K, T, S = 8, 4, 2, 4  # two pairs of keys: of one, every pairing is the same
    q, k, v = inputs(rng, H, K, T, S)
    mask, bias = rng.random((B, H, T, S)) < 0.7, rng.normal(size=(B, H, T, S))
    mask[0, :, 1] = False
    visible = mask & (np.arange(S) <= np.arange(T)[:, None] + S - T) if causal else mask
    expected = by_loops.diff_heads_hf(*map(exact, (q, k, v)), by_loops.DIGITS.mpf(0.7), START, eps, visible, bias)
    out = heads(q, k, v, mask, bias, eps=eps, causal=causal)
    # where the maps nearly cancel, ten times more of the rounding shows
    close(out.reshape(B, T, H // 2, -1), rounded(expected).reshape(B, T, H // 2, -1), 10 * FLOAT64)
