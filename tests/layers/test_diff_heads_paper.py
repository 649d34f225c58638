"""v1 as published: heads 2i and 2i + 1 are a pair."""

import importlib
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.layers import diff_heads_hf, diff_heads_paper, value_pairs_hf
from tests.golden import unilm
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS
from tests.layers.places import Case
from tests.tolerances import EXACT, FLOAT64, close

RNG = np.random.default_rng(41)
B, T, S, d = 2, 5, 7, 3
H, K = 12, 4  # three query heads to a key head
LAMBDA, START, EPS = np.array(0.7), 0.35, 1e-5
SIZES = st.sampled_from([(2, 2), (4, 4), (4, 2), (8, 4), (12, 4)])


def inputs(rng: np.random.Generator, H: int = H, K: int = K, queries: int = T, keys: int = S) -> list[np.ndarray]:
    """q, k, v and the norm's weight; v small enough for ε to matter."""
    q, k = rng.normal(size=(B, H, queries, d)), rng.normal(size=(B, K, keys, d))
    v = rng.normal(size=(B, K // 2, keys, 2 * d)) * 10.0 ** rng.uniform(-4, 1, size=(B, K // 2, 1, 1))
    return [q, k, v, rng.normal(size=2 * d)]


def heads(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, weight: np.ndarray, *more: Any, lambda_: Any = LAMBDA,
    start: float = START, eps: float = EPS, **options: Any,
) -> np.ndarray:  # fmt: skip
    return diff_heads_paper(q, k, v, lambda_, weight, start, eps, *more, **options)


Q, KEYS, V, WEIGHT = inputs(RNG)
MASK = RNG.random((B, H, T, S)) < 0.7
MASK[0, :, 1] = False
CASES = [
    Case("causal", diff_heads_paper, (Q, KEYS, V, LAMBDA, WEIGHT, START)),
    Case("not causal", diff_heads_paper, (Q, KEYS, V, LAMBDA, WEIGHT, START), {"causal": False, "eps": 1e-3}),
    Case("mask and bias", diff_heads_paper, (Q, KEYS, V, LAMBDA, WEIGHT, START, EPS, MASK, RNG.normal(size=(T, S)))),
    Case("bias by head", diff_heads_paper, (Q, KEYS, V, LAMBDA, WEIGHT, START, EPS, None, RNG.normal(size=(H, T, S)))),
    Case("one token", diff_heads_paper, (Q[:, :, :1], KEYS[:, :, :1], V[:, :, :1], LAMBDA, WEIGHT, START)),
    Case("empty", diff_heads_paper, (Q[:0], KEYS[:0], V[:0], LAMBDA, WEIGHT, START)),
]


def test_by_hand() -> None:
    # one token sees itself alone: A₁ = A₂ = 1, the head is 0.5 · (1, 7), its mean square 25 / 4
    one, v = np.ones((1, 2, 1, 1)), np.array([[[[1.0, 7.0]]]])
    out = heads(one, one, v, np.array([1.0, -10.0]), lambda_=np.array(0.5), start=0.2, eps=0.0)
    close(out, np.array([[[0.8 * 0.2, -0.8 * 14.0]]]), FLOAT64)
    # with ε = 75 / 4 the root doubles
    out = heads(one, one, v, np.ones(2), lambda_=np.array(0.5), start=0.2, eps=75 / 4)
    close(out, np.array([[[0.4 * 0.2, 0.4 * 1.4]]]), FLOAT64)


@given(SEEDS)
def test_epsilon_is_1e_5_unless_given(rng: np.random.Generator) -> None:
    q, k, v, weight = inputs(rng)
    small = 1e-3 * v  # where ε is as large as the mean square
    close(diff_heads_paper(q, k, small, LAMBDA, weight, START), heads(q, k, small, weight, eps=1e-5), EXACT)


def test_pairing_by_hand() -> None:
    # q₀ sees only key 0, q₁ both, q₂ and q₃ only key 1: scores 0 or −1e4; d = 1, H = 4, K = 2
    pick = np.array([[[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]]]) * 1e4
    k = np.repeat(np.eye(2)[None, None], 2, axis=1)
    v = np.array([[[[1.0, 5.0, 2.0, 6.0], [3.0, 7.0, 4.0, 8.0]]]])
    out = heads(pick, k, v, np.ones(4), lambda_=np.array(1.0), start=0.0, eps=1.0, causal=False)
    # pair 0: q₀ − q₁ = (1, 0) − (1/2, 1/2) = (1/2, −1/2); all four values fall by 2 from key to key: −1 each
    # pair 1: q₂ − q₃ = 0
    close(out, np.array([[[-1.0, -1, -1, -1, 0, 0, 0, 0]]]) / math.sqrt(2), FLOAT64)


@given(SEEDS, SIZES, st.booleans(), st.booleans())
def test_equals_hf_after_a_permutation_of_heads(
    rng: np.random.Generator, sizes: tuple[int, int], causal: bool, masked: bool
) -> None:
    H, K = sizes
    q, k, v, _ = inputs(rng, H, K)
    mask = rng.random((B, H, T, S)) < 0.8 if masked else None
    bias = rng.normal(size=(B, H, T, S)) if masked else None
    split = np.stack([v[..., :d], v[..., d:]], axis=2).reshape(B, K, S, d)  # heads 2j, 2j + 1 of width d

    def hf(x: Any) -> Any:
        return None if x is None else np.concatenate([x[:, 0::2], x[:, 1::2]], axis=1)

    out = heads(q, k, v, np.ones(2 * d), mask, bias, causal=causal)
    other = diff_heads_hf(
        hf(q), hf(k), value_pairs_hf(hf(split)), LAMBDA, START, EPS, hf(mask), hf(bias), causal=causal
    )
    close(out, other, EXACT)


@pytest.mark.no_arrays
@pytest.mark.parametrize(("size", "documented"), [("mha", "1e-15"), ("gqa2", "1.15"), ("gqa3", "1.26")])
def test_the_eager_file_of_unilm_is_as_far_off_as_documented(size: str, documented: str) -> None:
    case = unilm.case(f"v1-{size}")
    eager, flash = case.outputs["multihead_diffattn"], case.outputs["multihead_flashdiff_1"]
    share = np.abs(eager - flash).max() / np.abs(flash).max()
    assert share < 1e-15 if size == "mha" else f"{share:.2f}" == documented
    text = importlib.import_module("refdiff.layers.diff_heads_paper").__doc__
    assert re.search(rf"\b{documented}\b", text or "")


@settings(max_examples=settings().max_examples // 3)
@given(SEEDS, st.booleans(), st.sampled_from([1e-12, 1e-5, 0.1]))
def test_precision(rng: np.random.Generator, causal: bool, eps: float) -> None:
    H, K, T, S = 8, 4, 2, 4
    q, k, v, weight = inputs(rng, H, K, T, S)
    mask, bias = rng.random((B, H, T, S)) < 0.7, rng.normal(size=(B, H, T, S))
    mask[0, :, 1] = False
    visible = mask & (np.arange(S) <= np.arange(T)[:, None] + S - T) if causal else mask
    expected = by_loops.diff_heads_paper(
        *map(exact, (q, k, v)), by_loops.DIGITS.mpf(0.7), exact(weight), START, eps, visible, bias
    )
    out = heads(q, k, v, weight, mask, bias, eps=eps, causal=causal)
    # where the maps nearly cancel, ten times more of the rounding shows
    close(out.reshape(B, T, H // 2, -1), rounded(expected).reshape(B, T, H // 2, -1), 10 * FLOAT64)
