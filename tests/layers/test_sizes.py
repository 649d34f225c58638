"""What holds at small sizes holds at all: of each layer, a large input that is made of small ones, or taken apart.

The other files hold each equation to its definition on a few numbers. Here a length, a width, a number of heads or of
rows is larger than there, and up to hundreds; the right result follows from that of the layer on the small sizes.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import (
    activation,
    attention_weights,
    diff_attention,
    diff_heads_hf,
    diff_heads_paper,
    diff_heads_v2,
    linear,
    plain_heads,
    rms_norm,
    rope,
    rope_cos_sin,
    softmax,
    swiglu,
)
from tests.layers.inputs import SEEDS
from tests.tolerances import CANCELLED, close

TIMES = st.integers(2, 40)
"""How many small ones a large input is made of."""
WIDTHS = st.sampled_from([2, 12, 40, 64, 96, 130, 256])
"""Sizes of heads: on both sides of those that hardware likes."""


@given(SEEDS, TIMES)
def test_a_row_of_weights_several_times(rng: np.random.Generator, times: int) -> None:
    """Each weight is shared out: softmax([z, z]) = [a, a] / 2."""
    z = 3 * rng.normal(size=(2, 9))
    mask = rng.random((2, 9)) < 0.7
    wide = softmax(np.tile(z, times), np.tile(mask, times))
    close(wide, np.tile(softmax(z, mask), times) / times, CANCELLED)
    close(softmax(np.tile(z, times)), np.tile(softmax(z), times) / times, CANCELLED)


@given(SEEDS, TIMES)
def test_a_row_of_a_norm_several_times(rng: np.random.Generator, times: int) -> None:
    """The mean of squares is the same."""
    x, weight = rng.normal(size=(2, 9)), rng.normal(size=9)
    wide = rms_norm(np.tile(x, times), np.tile(weight, times), 0.1)
    close(wide, np.tile(rms_norm(x, weight, 0.1), times), CANCELLED)


def attended(rng: np.random.Generator, K: int, n: int, T: int, S: int, d: int, e: int) -> list[np.ndarray]:
    """q1, k1, q2, k2, v of n queries to each of K keys."""
    q1, q2 = rng.normal(size=(2, 2, K * n, T, d))
    k1, k2 = rng.normal(size=(2, 2, K, S, d))
    return [q1, k1, q2, k2, rng.normal(size=(2, K, S, e))]


LAMBDA = np.asarray(0.7)


@given(SEEDS, TIMES)
def test_each_key_several_times(rng: np.random.Generator, times: int) -> None:
    """With its value each gets its share of the weight, and the output is the same."""
    q1, k1, q2, k2, v = attended(rng, 2, 2, 3, 7, 5, 6)
    bias = rng.normal(size=(2, 8, 3, 7))
    often = [np.tile(x, (1, 1, times, 1)) for x in (k1, k2, v)]
    many = diff_attention(q1, often[0], q2, often[1], often[2], LAMBDA, None, np.tile(bias, times), causal=False)
    close(many, diff_attention(q1, k1, q2, k2, v, LAMBDA, None, bias, causal=False), CANCELLED)
    weights = attention_weights(q1, often[0], causal=False)
    close(weights, np.tile(attention_weights(q1, k1, causal=False), times) / times, CANCELLED)


@given(SEEDS, WIDTHS)
def test_heads_of_any_size(rng: np.random.Generator, d: int) -> None:
    """Zeros beside q and k change no score but for √d; columns of v are summed up each by itself."""
    q1, k1, q2, k2, v = attended(rng, 2, 2, 3, 7, 5, d)
    wide = [np.concatenate([x, np.zeros((*x.shape[:3], d))], axis=3) for x in (q1, k1, q2, k2)]
    wide[0], wide[2] = (x * np.sqrt((5 + d) / 5) for x in (wide[0], wide[2]))
    out = diff_attention(*wide, v, LAMBDA)
    some = [0, d // 2, d - 1]
    close(out[..., some], diff_attention(q1, k1, q2, k2, v[..., some], LAMBDA), CANCELLED)


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


@given(SEEDS, TIMES, TIMES)
def test_products_in_parts(rng: np.random.Generator, times: int, rows: int) -> None:
    """Of x as of the weight: sums over parts of the inner size, each output by itself."""
    x, weight, bias = rng.normal(size=(rows, 9 * times)), rng.normal(size=(7 * times, 9 * times)), rng.normal()
    out = linear(x, weight, np.full(7 * times, bias))
    o = int(rng.integers(7 * times))
    parts = [linear(x[:, p : p + 9], weight[o : o + 1, p : p + 9]) for p in range(0, 9 * times, 9)]
    close(out[:, o : o + 1], sum(parts) + bias, CANCELLED)


@given(SEEDS, TIMES, st.sampled_from(["silu", "gelu", "relu2", "tanh"]))
def test_gates_in_parts(rng: np.random.Generator, times: int, act: str) -> None:
    """SwiGLU is a sum over its inner size, and an activation takes each number by itself."""
    x, gate, up = rng.normal(size=(3, 5)), *rng.normal(size=(2, 8 * times, 5))
    down = rng.normal(size=(5, 8 * times))

    def of(part: slice) -> np.ndarray:
        weights = ({"weight": w} for w in (gate[part], up[part], down[:, part]))
        return np.asarray(swiglu(x, *weights, act=act))

    close(of(slice(None)), sum(of(slice(p, p + 8)) for p in range(0, 8 * times, 8)), CANCELLED)
    close(activation(np.tile(x, times), act), np.tile(activation(x, act), times), CANCELLED)


@given(SEEDS, WIDTHS, st.integers(1, 90))
def test_each_pair_turns_alone(rng: np.random.Generator, d: int, T: int) -> None:
    """A head of any size, at any number of positions: pair m at position t as if there were no other."""
    frequencies = rng.random(d // 2).tolist()
    cos, sin = rope_cos_sin(np.arange(T)[None], frequencies, 1.0, np.float64)
    x = rng.normal(size=(1, 3, T, d))
    m, t = int(rng.integers(d // 2)), int(rng.integers(T))
    at = np.s_[:, :, t : t + 1, m : m + 1]
    alone = rope_cos_sin(np.asarray([[t]]), frequencies[m : m + 1], 1.0, np.float64)
    for interleaved, pair in ((False, [m, m + d // 2]), (True, [2 * m, 2 * m + 1])):
        turned = rope(x, cos, sin, interleaved=interleaved)[:, :, t : t + 1, pair]
        close(turned, rope(x[:, :, t : t + 1, pair], cos[at], sin[at], interleaved=interleaved), CANCELLED)
        close(turned, rope(x[:, :, t : t + 1, pair], *alone, interleaved=interleaved), CANCELLED)
