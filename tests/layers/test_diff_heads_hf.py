"""v1 as in DiffLlama: heads i and i + H/2 are a pair."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.layers import attention_weights, diff_attention, diff_heads_hf, padding_mask, rms_norm, value_pairs_hf
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS, says
from tests.layers.places import Case, Place
from tests.tolerances import EXACT, FLOAT64, LIMIT, close

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


@given(SEEDS, st.sampled_from([(2, 2), (4, 4), (4, 2), (12, 4)]))
def test_each_pair_is_one_differential_head(rng: np.random.Generator, sizes: tuple[int, int]) -> None:
    H, K = sizes
    q, k, v = inputs(rng, H, K)
    out = heads(q, k, v).reshape(B, T, H // 2, 2 * d)
    for i in range(H // 2):
        j = i // (H // K)
        pair = [a[:, h : h + 1] for a, h in ((q, i), (k, j), (q, i + H // 2), (k, j + K // 2))]
        value = np.concatenate([v[:, j], v[:, j + K // 2]], axis=-1)[:, None]
        alone = (1 - START) * rms_norm(diff_attention(*pair, value, LAMBDA), None, EPS)
        close(out[:, :, i], alone[:, 0], 1e-12)


@given(SEEDS)
def test_grouped_queries_are_repeated_key_heads(rng: np.random.Generator) -> None:
    q, k, v = inputs(rng)
    n = H // K
    close(heads(q, k, v), heads(q, np.repeat(k, n, axis=1), np.repeat(v, n, axis=1)), 1e-12)


@given(SEEDS, st.floats(0.1, 5))
def test_swapping_the_streams_negates_the_output(rng: np.random.Generator, lambda_: float) -> None:
    q, k, v = inputs(rng)
    other_q, other_k = (np.concatenate(np.split(a, 2, axis=1)[::-1], axis=1) for a in (q, k))
    out = heads(q, k, v, lambda_=np.array(lambda_))
    # only the norm's ε feels the factor λ: it is scaled with its square
    swapped = diff_heads_hf(other_q, other_k, value_pairs_hf(v), np.array(1 / lambda_), START, EPS / lambda_**2)
    close(out, -swapped, 1e-11)


@given(SEEDS, st.floats(1e-2, 1e2))
def test_scaling_the_values_changes_nothing_as_epsilon_vanishes(rng: np.random.Generator, c: float) -> None:
    q, k, v = inputs(rng)
    close(heads(q, k, c * v, eps=1e-24), heads(q, k, v, eps=1e-24), LIMIT)
    close(heads(q, k, c * v, eps=c * c * EPS), heads(q, k, v), 1e-12)


@given(SEEDS, st.floats(0, 0.9))
def test_each_head_has_the_size_of_the_scale(rng: np.random.Generator, start: float) -> None:
    q, k, v = inputs(rng)
    out = heads(q, k, v, lambda_init=start, eps=0.0).reshape(B, T, H // 2, 2 * d)
    close(np.mean(out**2, axis=-1), np.full((B, T, H // 2), (1 - start) ** 2), 1e-12)


@given(SEEDS)
def test_lambda_zero_is_plain_attention_normed(rng: np.random.Generator) -> None:
    q, k, v = inputs(rng)
    plain = attention_weights(q[:, : H // 2], k[:, : K // 2]) @ np.repeat(value_pairs_hf(v), H // K, axis=1)
    expected = (1 - START) * rms_norm(plain, None, EPS)
    close(heads(q, k, v, lambda_=np.array(0.0)), np.moveaxis(expected, 1, 2).reshape(B, T, H * d), 1e-12)


@given(SEEDS, st.floats(-1, 3))
def test_constant_values_are_weighed_by_one_minus_lambda(rng: np.random.Generator, lambda_: float) -> None:
    q, k, v = inputs(rng)
    constant = np.repeat(v[:, :, :1], S, axis=2)
    joined = np.repeat(value_pairs_hf(v)[:, :, :1], H // K, axis=1)
    expected = (1 - START) * rms_norm((1 - lambda_) * joined, None, EPS)
    out = heads(q, k, constant, lambda_=np.array(lambda_)).reshape(B, T, H // 2, 2 * d)
    # near λ = 1 the rounding of the row sums is all that is left, and the norm makes it larger: 1e-16 / √ε
    assert np.abs(out - np.moveaxis(expected, 1, 2)).max() < 1e-11 * np.abs(v).max()


@given(SEEDS)
def test_order_of_keys_does_not_matter(rng: np.random.Generator) -> None:
    q, k, v = inputs(rng)
    order = rng.permutation(S)
    out = heads(q, k, v, causal=False)
    close(heads(q, k[:, :, order], v[:, :, order], causal=False), out, 1e-10)


@given(SEEDS)
def test_what_a_token_may_not_see_changes_nothing(rng: np.random.Generator) -> None:
    q, k, v = inputs(rng)
    attention_mask = np.array([[0, 0, 1, 1, 1, 1, 1], [1] * S])
    mask = padding_mask(attention_mask)
    out = heads(q, k, v, mask)
    later = np.arange(S) >= S - 2
    for hidden, rows in ((attention_mask == 0, slice(None)), (np.stack([later, later]), slice(T - 2))):
        changed = [np.where(hidden[:, None, :, None], rng.normal(size=a.shape) * 100, a) for a in (k, v)]
        close(heads(q, *changed, mask)[:, rows], out[:, rows], EXACT)


@given(SEEDS)
def test_sequences_of_a_batch_are_apart(rng: np.random.Generator) -> None:
    q, k, v = inputs(rng)
    close(heads(q[::-1], k[::-1], v[::-1]), heads(q, k, v)[::-1], EXACT)
    close(heads(q[:1], k[:1], v[:1]), heads(q, k, v)[:1], 1e-12)


def test_a_row_that_sees_nothing_is_zero() -> None:
    out = heads(Q, KEYS, V, MASK)
    close(out[0, 1], np.zeros(H * d), EXACT)
    assert np.all(out[1, 1] != 0)


@pytest.mark.parametrize("shape", [(2, 3, 5, 3), (4, 5, 3), (4, 5), (1, 2, 4, 5, 3)])
def test_heads_that_do_not_pair(shape: tuple[int, ...]) -> None:
    message = f"has shape {shape}, but must be (B, heads, T, d) with even heads"
    with says(ValueError, f"value_pairs_hf: v {message}"):
        value_pairs_hf(np.zeros(shape))
    with says(ValueError, f"diff_heads_hf: q {message}"):
        diff_heads_hf(np.zeros(shape), KEYS, JOINED, LAMBDA, START, EPS)
    with says(ValueError, f"diff_heads_hf: k {message}"):
        diff_heads_hf(Q, np.zeros(shape), JOINED, LAMBDA, START, EPS)


def test_values_that_were_not_joined() -> None:
    message = (
        "diff_attention: q1 (2, 6, 5, 3) and q2 (2, 6, 5, 3), k1 (2, 2, 7, 3) and k2 (2, 2, 7, 3) must be alike, "
        "and v (2, 4, 7, 3) as long as k1"
    )
    with says(ValueError, message):
        diff_heads_hf(Q, KEYS, V, LAMBDA, START, EPS)


@settings(max_examples=settings().max_examples // 3)
@given(SEEDS, st.booleans(), st.sampled_from([1e-12, 1e-5, 0.1]))
def test_precision(rng: np.random.Generator, causal: bool, eps: float) -> None:
    H, K, T, S = 4, 2, 3, 5
    q, k, v = inputs(rng, H, K, T, S)
    mask, bias = rng.random((B, H, T, S)) < 0.7, rng.normal(size=(B, H, T, S))
    mask[0, :, 1] = False
    visible = mask & (np.arange(S) <= np.arange(T)[:, None] + S - T) if causal else mask
    expected = by_loops.diff_heads_hf(*map(exact, (q, k, v)), by_loops.DIGITS.mpf(0.7), START, eps, visible, bias)
    out = heads(q, k, v, mask, bias, eps=eps, causal=causal)
    # where the maps nearly cancel, ten times more of the rounding shows
    close(out.reshape(B, T, H // 2, -1), rounded(expected).reshape(B, T, H // 2, -1), 10 * FLOAT64)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_backend(case: Case, xp: Place) -> None:
    case.check(xp)
