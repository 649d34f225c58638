"""What holds at small sizes holds at all: of attention, one query or one pair of heads of a large input alone.

The other files compare each equation with its definition on a few numbers. Here a length, a width or a number of
heads is larger than there, up to hundreds; the expected result is that of the layer on the small sizes.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import (
    diff_attention,
    diff_heads_hf,
    diff_heads_paper,
    diff_heads_v2,
    plain_heads,
)
from tests.layers.inputs import SEEDS
from tests.tolerances import CANCELLED, close

WIDTHS = st.sampled_from([2, 12, 40, 64, 96, 130, 256])
"""Sizes of heads: on both sides of those that hardware likes."""


def attended(rng: np.random.Generator, K: int, n: int, T: int, S: int, d: int, e: int) -> list[np.ndarray]:
    """q1, k1, q2, k2, v of n queries to each of K keys."""
    q1, q2 = rng.normal(size=(2, 2, K * n, T, d))
    k1, k2 = rng.normal(size=(2, 2, K, S, d))
    return [q1, k1, q2, k2, rng.normal(size=(2, K, S, e))]


LAMBDA = np.asarray(0.7)


@given(SEEDS, st.integers(1, 5), st.integers(1, 4), st.integers(1, 90), st.integers(0, 40))
def test_each_query_alone(rng: np.random.Generator, K: int, n: int, T: int, past: int) -> None:
    """Of any number of heads and tokens: one query of one head on the keys that it may see."""
    S = T + past
    q1, k1, q2, k2, v = attended(rng, K, n, T, S, 4, 3)
    out = diff_attention(q1, k1, q2, k2, v, LAMBDA)
    assert out.shape == (2, K * n, T, 3)
    for b, h, t in zip(*(rng.integers(0, size, 3) for size in (2, K * n, T)), strict=True):
        one, keys = np.s_[b : b + 1, h : h + 1, t : t + 1], np.s_[b : b + 1, h // n : h // n + 1, : past + t + 1]
        alone = diff_attention(q1[one], k1[keys], q2[one], k2[keys], v[keys], LAMBDA, causal=False)
        close(out[one], alone, CANCELLED)


@given(SEEDS, st.integers(1, 8), st.integers(1, 4), WIDTHS, st.integers(1, 40))
def test_each_pair_of_heads_alone(rng: np.random.Generator, K: int, n: int, d: int, T: int) -> None:
    """Of any number of pairs in each wiring: its queries on its keys and values."""
    h = K * n
    q, k = rng.normal(size=(1, 2 * h, T, d)), rng.normal(size=(1, 2 * K, T, d))
    v, weight = rng.normal(size=(1, K, T, 2 * d)), rng.normal(size=2 * d)
    by_token = rng.random((1, h, T, 1))
    i = int(rng.integers(h))
    j = i // n
    paper = diff_heads_paper(q, k, v, LAMBDA, weight, 0.36, 0.1)
    hf = diff_heads_hf(q, k, v, LAMBDA, 0.36, 0.1)
    v2 = diff_heads_v2(q, k[:, :K], v, by_token)
    plain = plain_heads(q[:, :h], k[:, :K], v)
    mine = [slice(2 * x, 2 * x + 2) for x in (i, j)]
    one = diff_heads_paper(q[:, mine[0]], k[:, mine[1]], v[:, j : j + 1], LAMBDA, weight, 0.36, 0.1)
    at = np.s_[..., 2 * d * i : 2 * d * (i + 1)]
    close(paper[at], one, CANCELLED)
    of = [np.s_[:, [i, i + h]], np.s_[:, [j, j + K]]]
    close(hf[at], diff_heads_hf(q[of[0]], k[of[1]], v[:, j : j + 1], LAMBDA, 0.36, 0.1), CANCELLED)
    key = np.s_[:, j : j + 1]
    close(v2[at], diff_heads_v2(q[:, mine[0]], k[key], v[key], by_token[:, i : i + 1]), CANCELLED)
    close(plain[at], plain_heads(q[:, i : i + 1], k[key], v[key]), CANCELLED)
