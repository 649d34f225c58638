"""v2: two query heads share one key and value head, λ is per token and head."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.layers import diff_heads_v2, plain_heads
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS
from tests.layers.places import Case
from tests.tolerances import FLOAT64, close

RNG = np.random.default_rng(43)
B, T, S, d = 2, 5, 7, 3
h, K = 6, 2  # three outputs, six queries to a key head
SIZES = st.sampled_from([(1, 1), (3, 1), (3, 3), (4, 2), (6, 2)])


def inputs(rng: np.random.Generator, h: int = h, K: int = K, queries: int = T, keys: int = S) -> list[np.ndarray]:
    """q, k, v and λ."""
    q = rng.normal(size=(B, 2 * h, queries, d))
    k, v = rng.normal(size=(2, B, K, keys, d))
    return [q, k, v, rng.uniform(size=(B, h, queries, 1))]


Q, KEYS, V, LAMBDA = inputs(RNG)
MASK = RNG.random((B, 2 * h, T, S)) < 0.7
MASK[0, :, 1] = False
CASES = [
    Case("causal", diff_heads_v2, (Q, KEYS, V, LAMBDA)),
    Case("not causal", diff_heads_v2, (Q, KEYS, V, LAMBDA), {"causal": False}),
    Case("mask and bias", diff_heads_v2, (Q, KEYS, V, LAMBDA, MASK, RNG.normal(size=(T, S)))),
    Case("bias by head", diff_heads_v2, (Q, KEYS, V, LAMBDA, None, RNG.normal(size=(2 * h, T, S)))),
    Case("one token", diff_heads_v2, (Q[:, :, :1], KEYS[:, :, :1], V[:, :, :1], LAMBDA[:, :, :1])),
    Case("empty", diff_heads_v2, (Q[:0], KEYS[:0], V[:0], LAMBDA[:0])),
]


def test_by_hand() -> None:
    # q₀ sees only key 0, q₁ both, q₂ only key 1, q₃ only key 0: scores 0 or −1e4; d = 2, one key head
    pick = np.array([[[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]]]) * 1e4
    v = np.array([[[[1.0, 10.0], [3.0, 20.0]]]])
    lambda_ = np.array([[[[0.5]], [[0.25]]]])
    out = diff_heads_v2(pick, np.eye(2)[None, None], v, lambda_, causal=False)
    # v₀ − ½ (v₀ + v₁) / 2 and v₁ − ¼ v₀
    close(out, np.array([[[1 - 1.0, 10 - 7.5, 3 - 0.25, 20 - 2.5]]]), FLOAT64)


@given(SEEDS, SIZES)
def test_is_plain_attention_with_twice_the_heads_subtracted_in_pairs(
    rng: np.random.Generator, sizes: tuple[int, int]
) -> None:
    h, K = sizes
    q, k, v, lambda_ = inputs(rng, h, K)
    plain = plain_heads(q, k, v).reshape(B, T, h, 2, d)
    expected = plain[:, :, :, 0] - np.moveaxis(lambda_, 1, 2) * plain[:, :, :, 1]
    close(diff_heads_v2(q, k, v, lambda_), expected.reshape(B, T, h * d), 1e-12)


@given(SEEDS, st.floats(-3, 2))
def test_the_size_of_the_context_is_between_0_and_the_root_of_2(rng: np.random.Generator, sharpness: float) -> None:
    """Values that are uncorrelated and of RMS 1: plain attention gives [1/√n, 1], v2 gives (0, √2)."""
    n = 8
    v = math.sqrt(n) * np.linalg.qr(rng.normal(size=(n, n)))[0][None, None]
    q, k = rng.normal(size=(1, 2, n, n)) * 10**sharpness, rng.normal(size=(1, 1, n, n))
    lambda_ = rng.uniform(1e-6, 1 - 1e-6, size=(1, 1, n, 1))
    plain = np.sqrt(np.mean(plain_heads(q[:, :1], k, v, causal=False) ** 2, axis=-1))
    assert np.all((plain >= 1 / math.sqrt(n) - 1e-12) & (plain <= 1 + 1e-12))
    size = np.sqrt(np.mean(diff_heads_v2(q, k, v, lambda_, causal=False) ** 2, axis=-1))
    assert np.all((size > 0) & (size < math.sqrt(2)))


def test_the_size_of_the_context_reaches_its_bounds() -> None:
    n = 8
    v, k = math.sqrt(n) * np.eye(n)[None, None], np.eye(n)[None, None]
    same, apart = np.zeros((1, 2, 1, n)), np.zeros((1, 2, 1, n))
    apart[0, 0, 0, 0] = apart[0, 1, 0, 1] = 1e4
    almost = np.full((1, 1, 1, 1), 1 - 1e-9)
    for q, bound in ((same, 0.0), (apart, math.sqrt(2))):
        size = float(np.sqrt(np.mean(diff_heads_v2(q, k, v, almost, causal=False) ** 2)))
        assert abs(size - bound) < 1e-8


@settings(max_examples=settings().max_examples // 3)
@given(SEEDS, st.booleans())
def test_precision(rng: np.random.Generator, causal: bool) -> None:
    h, K, T, S = 4, 2, 2, 4
    q, k, v, lambda_ = inputs(rng, h, K, T, S)
    mask, bias = rng.random((B, 2 * h, T, S)) < 0.7, rng.normal(size=(B, 2 * h, T, S))
    mask[0, :, 1] = False
    visible = mask & (np.arange(S) <= np.arange(T)[:, None] + S - T) if causal else mask
    expected = by_loops.diff_heads_v2(*map(exact, (q, k, v, lambda_[..., 0])), visible, bias)
    out = diff_heads_v2(q, k, v, lambda_, mask, bias, causal=causal)
    # where the maps nearly cancel, ten times more of the rounding shows
    close(out, rounded(expected), 10 * FLOAT64)
