"""(softmax(Q₁K₁ᵀ/√d) − λ softmax(Q₂K₂ᵀ/√d)) V."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.layers import (
    attention_weights,
    diff_attention,
    diff_attention_vjp,
    packed_mask,
    padding_mask,
)
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS, says
from tests.layers.places import Place
from tests.tolerances import EXACT, FLOAT64, close

RNG = np.random.default_rng(31)
B, H, K, T, S, d, e = 2, 6, 3, 5, 7, 11, 13
LAMBDA = np.array(0.7)


def inputs(rng: np.random.Generator, queries: int = T, keys: int = S, n: int = H // K) -> list[np.ndarray]:
    """q1, k1, q2, k2, v with n query heads to a key head."""
    q1, q2 = rng.normal(size=(2, B, n * K, queries, d))
    k1, k2 = rng.normal(size=(2, B, K, keys, d))
    return [q1, k1, q2, k2, rng.normal(size=(B, K, keys, e))]


def seen(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """A mask in which one row of the first sequence sees nothing."""
    mask = rng.random(shape) < 0.6
    mask[0, 0, -1] = False
    return mask


INPUTS = inputs(RNG)


def test_one_map_by_hand() -> None:
    # √d = 2: scores log 3 and 0, weights 3/4 and 1/4; then both halves of a bias
    q, k = np.array([[[[2.0, 0.0, 0.0, 0.0]]]]), np.zeros((1, 1, 2, 4))
    k[0, 0, 0] = [math.log(3), 5.0, 5.0, 5.0]
    close(attention_weights(q, k)[0, 0], np.array([[0.75, 0.25]]), FLOAT64)
    close(attention_weights(q, k, None, np.log([[1.0, 3.0]]))[0, 0], np.array([[0.5, 0.5]]), FLOAT64)
    close(attention_weights(q, k, np.array([[False, True]]))[0, 0], np.array([[0.0, 1.0]]), EXACT)
    close(attention_weights(q, k, np.array([[False, False]]))[0, 0], np.zeros((1, 2)), EXACT)


def test_difference_by_hand() -> None:
    one, log3 = np.ones((1, 1, 1, 1)), math.log(3)
    k1, k2 = np.array([[[[log3], [0.0]]]]), np.array([[[[0.0], [0.0]]]])
    v = np.array([[[[1.0, 10.0, 0.0], [2.0, 20.0, 4.0]]]])
    # (3/4, 1/4) − 0.5 (1/2, 1/2) = (1/2, 0)
    out = diff_attention(one, k1, one, k2, v, np.array(0.5))
    close(out, np.array([[[[0.5, 5.0, 0.0]]]]), FLOAT64)
    # the other way round: (1/2, 1/2) − 2 (3/4, 1/4) = (−1, 0)
    out = diff_attention(one, k2, one, k1, v, np.array(2.0))
    close(out, np.array([[[[-1.0, -10.0, 0.0]]]]), FLOAT64)


def difference(x: list[np.ndarray], lambda_: Any = LAMBDA, *more: Any, **options: bool) -> np.ndarray:
    """A₁ − λ A₂ itself: the layer with an identity for its values."""
    q1, k1, q2, k2, _ = x
    keys = k1.shape[2]
    unit = np.broadcast_to(np.eye(keys), (B, k1.shape[1], keys, keys))
    return diff_attention(q1, k1, q2, k2, unit, np.asarray(lambda_), *more, **options)


@given(SEEDS, st.floats(-3, 3))
def test_rows_of_the_difference_sum_to_one_minus_lambda(rng: np.random.Generator, lambda_: float) -> None:
    x = inputs(rng)
    sums = difference(x, lambda_).sum(axis=-1)
    close(sums + lambda_, np.ones((B, H, T)), 1e-12)
    mask = seen(rng, B, 1, T, S)
    sums = difference(x, lambda_, mask, causal=False).sum(axis=-1)
    close(sums + lambda_, np.broadcast_to(np.where(mask.any(axis=-1), 1, lambda_), sums.shape), 1e-12)


@given(SEEDS)
def test_lambda_zero_is_plain_attention(rng: np.random.Generator) -> None:
    q1, k1, q2, k2, v = x = inputs(rng)
    plain = attention_weights(q1, k1) @ np.repeat(v, H // K, axis=1)
    close(diff_attention(*x, np.array(0.0)), plain, FLOAT64)
    other = diff_attention(q1, k1, 7 * q2, k2 - 3, v, np.array(0.0))
    close(other, diff_attention(*x, np.array(0.0)), EXACT)


@given(SEEDS, st.integers(0, T - 1))
def test_later_tokens_change_nothing(rng: np.random.Generator, t: int) -> None:
    q1, k1, q2, k2, v = x = inputs(rng)
    first = t + S - T + 1  # of the keys that query t may not see
    changed = [k1.copy(), k2.copy(), v.copy()]
    for a in changed:
        a[:, :, first:] = rng.normal(size=a[:, :, first:].shape) * 100
    out = diff_attention(q1, changed[0], q2, changed[1], changed[2], LAMBDA)
    close(out[:, :, : t + 1], diff_attention(*x, LAMBDA)[:, :, : t + 1], EXACT)
    # nor does it matter whether they are there
    short = [q1[:, :, : t + 1], k1[:, :, :first], q2[:, :, : t + 1], k2[:, :, :first], v[:, :, :first]]
    close(diff_attention(*short, LAMBDA), out[:, :, : t + 1], 1e-12)


@given(SEEDS)
def test_padded_tokens_change_nothing(rng: np.random.Generator) -> None:
    q1, k1, q2, k2, v = x = inputs(rng)
    attention_mask = np.array([[0, 0, 1, 1, 1, 1, 1], [1] * S])
    mask = padding_mask(attention_mask)
    out = diff_attention(*x, LAMBDA, mask)
    changed = [np.where(attention_mask[:, None, :, None] == 0, rng.normal(size=a.shape) * 100, a) for a in (k1, k2, v)]
    close(diff_attention(q1, changed[0], q2, changed[1], changed[2], LAMBDA, mask), out, EXACT)
    alone = [a[:1, :, 2:] if a.shape[2] == S else a[:1] for a in x]
    close(diff_attention(*alone, LAMBDA), out[:1], 1e-12)
    close(diff_attention(*(a[1:] for a in x), LAMBDA), out[1:], 1e-12)


@pytest.mark.parametrize("hidden", [math.nan, math.inf, -math.inf])
def test_keys_that_are_no_numbers_do_not_leak_through_a_mask(hidden: float) -> None:
    q1, k1, q2, k2, v = INPUTS
    mask = np.ones((B, 1, 1, S), bool)
    mask[0, ..., :2], mask[1, ..., 4] = False, False
    bad1, bad2 = k1.copy(), k2.copy()
    for bad in (bad1, bad2):
        bad[0, :, :2], bad[1, :, 4] = hidden, hidden
    with np.errstate(invalid="ignore"):  # inf − inf, in scores that are not used
        out = diff_attention(q1, bad1, q2, bad2, v, LAMBDA, mask)
    close(out, diff_attention(*INPUTS, LAMBDA, mask), EXACT)
    bias = np.where(mask, 0.0, hidden)
    close(diff_attention(*INPUTS, LAMBDA, mask, bias), diff_attention(*INPUTS, LAMBDA, mask), EXACT)


def test_a_bias_of_minus_infinity_is_a_mask() -> None:
    mask = np.ones((B, 1, T, S), bool)
    mask[:, :, 1:, 1], mask[0, :, :, 2] = False, False
    bias = np.where(mask, 0.0, -math.inf)
    close(diff_attention(*INPUTS, LAMBDA, None, bias), diff_attention(*INPUTS, LAMBDA, mask), FLOAT64)


@given(SEEDS)
def test_a_mask_and_bias_for_each_map(rng: np.random.Generator) -> None:
    q1, k1, q2, k2, v = x = inputs(rng)
    mask, bias = seen(rng, B, 2 * H, T, S), rng.normal(size=(2 * H, T, S))
    a1 = attention_weights(q1, k1, mask[:, :H], bias[:H])
    a2 = attention_weights(q2, k2, mask[:, H:], bias[H:])
    expected = (a1 - LAMBDA * a2) @ np.repeat(v, H // K, axis=1)
    close(diff_attention(*x, LAMBDA, mask, bias), expected, FLOAT64)
    # with an axis of one map's heads, or of length 1, or none, both maps share it
    for few in (mask[:, :H], mask[:, :1], mask[0, 0], mask[0, 0, 0], mask[:, :1, :1]):
        doubled = np.concatenate([np.broadcast_to(few, (B, H, T, S))] * 2, axis=1)
        close(diff_attention(*x, LAMBDA, few, bias), diff_attention(*x, LAMBDA, doubled, bias), FLOAT64)


@given(SEEDS, st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_packed_sequences_are_as_if_alone(rng: np.random.Generator, lengths: list[int]) -> None:
    total = sum(lengths)
    x = inputs(rng, total, total)
    positions = np.array([[p for length in lengths for p in range(length)]] * B)
    packed = diff_attention(*x, LAMBDA, packed_mask(positions))
    start = 0
    for length in lengths:
        alone = [a[:, :, start : start + length] for a in x]
        close(packed[:, :, start : start + length], diff_attention(*alone, LAMBDA), 1e-12)
        start += length


def test_no_keys_give_zeros() -> None:
    none = inputs(RNG, T, 0)
    for call in ({"causal": False}, {"mask": np.zeros((B, 1, 1, 0), bool), "causal": False}):
        close(diff_attention(*none, LAMBDA, **call), np.zeros((B, H, T, e)), EXACT)
    gradients = diff_attention_vjp(np.ones((B, H, T, e)), *none, LAMBDA, causal=False)
    for found, x in zip(gradients, [*none, LAMBDA], strict=True):
        close(found, np.zeros_like(x), EXACT, empty=x.size == 0)


def test_a_mask_that_is_not_boolean(xp: Place) -> None:
    dtype = xp.put(LAMBDA).dtype
    message = f'attention_weights: mask: got dtype {dtype}, expected boolean (True means "may see")'
    with says(ValueError, message):
        attention_weights(*INPUTS[:2], np.ones((T, S)))
    with says(ValueError, message):
        diff_attention(*INPUTS, LAMBDA, np.ones((B, 2 * H, T, S)))


@settings(max_examples=settings().max_examples // 6)
@given(SEEDS, st.booleans())
def test_precision(rng: np.random.Generator, causal: bool) -> None:
    B, H, K, T, S, d, e = 2, 2, 1, 3, 5, 3, 2
    q1, q2 = rng.normal(size=(2, B, H, T, d))
    k1, k2 = rng.normal(size=(2, B, K, S, d))
    v, lambda_ = rng.normal(size=(B, K, S, e)), rng.normal(size=(B, H, T, 1))
    mask, bias = seen(rng, B, 2 * H, T, S), rng.normal(size=(B, 2 * H, T, S))
    visible = np.array(mask)
    for t, s in np.ndindex(T, S):
        visible[:, :, t, s] &= not causal or s <= t + S - T
    x = [q1, k1, q2, k2, v]
    expected = by_loops.diff_attention(*map(exact, x), exact(lambda_[..., 0]), visible, bias)
    close(diff_attention(*x, lambda_, mask, bias, causal=causal), rounded(expected), FLOAT64)
    one = by_loops.attention(exact(q1), exact(k1), visible[:, :H], bias[:, :H])
    close(attention_weights(q1, k1, mask[:, :H], bias[:, :H], causal=causal), rounded(one), FLOAT64)
