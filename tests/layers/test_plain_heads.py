"""Plain multi-head attention."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.layers import plain_heads
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS
from tests.layers.places import Case
from tests.tolerances import FLOAT64, close

RNG = np.random.default_rng(47)
B, T, S, d, e = 2, 5, 7, 3, 4
H, K = 6, 2


def inputs(rng: np.random.Generator, H: int = H, K: int = K, queries: int = T, keys: int = S) -> list[np.ndarray]:
    return [rng.normal(size=(B, H, queries, d)), rng.normal(size=(B, K, keys, d)), rng.normal(size=(B, K, keys, e))]


Q, KEYS, V = inputs(RNG)
MASK = RNG.random((B, H, T, S)) < 0.7
MASK[0, :, 1] = False
CASES = [
    Case("causal", plain_heads, (Q, KEYS, V)),
    Case("not causal", plain_heads, (Q, KEYS, V), {"causal": False}),
    Case("mask and bias", plain_heads, (Q, KEYS, V, MASK, RNG.normal(size=(T, S)))),
    Case("one token", plain_heads, (Q[:, :, :1], KEYS[:, :, :1], V[:, :, :1])),
    Case("empty", plain_heads, (Q[:0], KEYS[:0], V[:0])),
]


def test_by_hand() -> None:
    # q₀ sees only key 0, q₁ both, q₂ and q₃ only key 1; heads 0 and 1 read the first values, 2 and 3 the second
    pick = np.array([[[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]]]) * 1e4
    k = np.repeat(np.eye(2)[None, None], 2, axis=1)
    v = np.array([[[[1.0], [3.0]], [[5.0], [7.0]]]])
    close(plain_heads(pick, k, v, causal=False), np.array([[[1.0, 2.0, 7.0, 7.0]]]), FLOAT64)


@given(SEEDS)
def test_two_streams_side_by_side_are_one_map_of_the_sum_of_their_scores(rng: np.random.Generator) -> None:
    """Ye et al. 2024, eq. 8: softmax((Q₁K₁ᵀ + Q₂K₂ᵀ) / √2d) is plain attention with heads of width 2d."""
    q1, k1, v = inputs(rng, 4, 2)
    q2, k2 = rng.normal(size=q1.shape), rng.normal(size=k1.shape)
    scores = (q1 @ np.repeat(k1, 2, axis=1).mT + q2 @ np.repeat(k2, 2, axis=1).mT) / np.sqrt(2 * d)
    powers = np.exp(scores)
    expected = powers / powers.sum(axis=-1, keepdims=True) @ np.repeat(v, 2, axis=1)
    out = plain_heads(np.concatenate([q1, q2], axis=-1), np.concatenate([k1, k2], axis=-1), v, causal=False)
    close(out, np.moveaxis(expected, 1, 2).reshape(B, T, -1), 1e-12)


@settings(max_examples=settings().max_examples // 3)
@given(SEEDS, st.booleans())
def test_precision(rng: np.random.Generator, causal: bool) -> None:
    H, K, T, S = 4, 2, 2, 4
    q, k, v = inputs(rng, H, K, T, S)
    mask, bias = rng.random((B, H, T, S)) < 0.7, rng.normal(size=(B, H, T, S))
    mask[0, :, 1] = False
    visible = mask & (np.arange(S) <= np.arange(T)[:, None] + S - T) if causal else mask
    expected = by_loops.plain_heads(*map(exact, (q, k, v)), visible, bias)
    close(plain_heads(q, k, v, mask, bias, causal=causal), rounded(expected), 10 * FLOAT64)
