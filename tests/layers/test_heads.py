"""The laws of all four kinds of heads: differential attention of their streams, and what follows it.

What one kind has alone is in its own file.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import (
    diff_attention,
    diff_heads_hf,
    diff_heads_paper,
    diff_heads_v2,
    diff_lambda,
    diff_lambda_v2,
    lambda_init,
    linear,
    padding_mask,
    plain_heads,
    rms_norm,
    rope,
    rope_cos_sin,
)
from tests.golden import unilm
from tests.layers.inputs import SEEDS
from tests.tolerances import EXACT, close

B, T, S, d = 2, 5, 7, 3
START, EPS, WEIGHT = 0.35, 1e-5, np.linspace(-1, 2, 2 * d)
NORMED = ("hf", "paper")
EACH = pytest.mark.parametrize("kind", ["hf", "paper", "v2", "plain"])


def heads(kind: str, q: Any, k: Any, v: Any, lambda_: Any, *seen: Any, **options: bool) -> np.ndarray:
    """The layer of a kind; plain heads have no λ."""
    match kind:
        case "hf":
            return diff_heads_hf(q, k, v, lambda_, START, EPS, *seen, **options)
        case "paper":
            return diff_heads_paper(q, k, v, lambda_, WEIGHT, START, EPS, *seen, **options)
        case "v2":
            return diff_heads_v2(q, k, v, lambda_, *seen, **options)
    return plain_heads(q, k, v, *seen, **options)


def draw(kind: str, rng: np.random.Generator, K: int = 2, n: int = 3) -> list[np.ndarray]:
    """q, k, v and λ of n outputs to each of K heads of values, which are small enough for a norm's ε to matter."""
    q = rng.normal(size=(B, (1 if kind == "plain" else 2) * K * n, T, d))
    k = rng.normal(size=(B, (2 if kind in NORMED else 1) * K, S, d))
    v = rng.normal(size=(B, K, S, 2 * d)) * 10.0 ** rng.uniform(-4, 1, size=(B, K, 1, 1))
    lambda_ = {"v2": rng.uniform(size=(B, K * n, T, 1)), "plain": np.zeros(())}.get(kind, np.asarray(rng.normal()))
    return [q, k, v, lambda_]


def streams(kind: str, x: Any) -> tuple[Any, Any]:
    """The heads (axis 1) of the first map, and those of the second."""
    if kind == "plain" or x is None:
        return x, x
    return (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]) if kind == "hf" else (x[:, 0::2], x[:, 1::2])


@EACH
@given(SEEDS, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans())
def test_they_are_differential_attention_of_their_streams(
    kind: str, rng: np.random.Generator, K: int, n: int, causal: bool, masked: bool
) -> None:
    """With a mask and a bias for each map; then the norm and the scale of v1."""
    q, k, v, lambda_ = draw(kind, rng, K, n)
    shape = (B, q.shape[1], T, S)
    mask, bias = (rng.random(shape) < 0.7, rng.normal(size=shape)) if masked else (None, None)
    both = [None if x is None else np.concatenate(streams(kind, x), axis=1) for x in (mask, bias)]
    (q1, q2), (k1, k2) = streams(kind, q), streams(kind, k) if kind in NORMED else (k, k)
    expected = np.moveaxis(diff_attention(q1, k1, q2, k2, v, lambda_, *(both if masked else ()), causal=causal), 1, 2)
    if kind in NORMED:
        expected = (1 - START) * rms_norm(expected, WEIGHT if kind == "paper" else None, EPS)
    out = heads(kind, q, k, v, lambda_, mask, bias, causal=causal)
    close(out.reshape(expected.shape), expected, 1e-12)


@EACH
@given(SEEDS)
def test_what_a_token_may_not_see_changes_nothing(kind: str, rng: np.random.Generator) -> None:
    q, k, v, lambda_ = draw(kind, rng)
    attention_mask = np.array([[0, 0, 1, 1, 1, 1, 1], [1] * S])
    mask = padding_mask(attention_mask)
    out = heads(kind, q, k, v, lambda_, mask)
    later = np.arange(S) >= S - 2
    for hidden, rows in ((attention_mask == 0, slice(None)), (np.stack([later, later]), slice(T - 2))):
        changed = [np.where(hidden[:, None, :, None], rng.normal(size=a.shape) * 100, a) for a in (k, v)]
        close(heads(kind, q, *changed, lambda_, mask)[:, rows], out[:, rows], EXACT)


@EACH
@given(SEEDS)
def test_order_of_keys_and_of_sequences_does_not_matter(kind: str, rng: np.random.Generator) -> None:
    q, k, v, lambda_ = draw(kind, rng)
    out, order = heads(kind, q, k, v, lambda_, causal=False), rng.permutation(S)
    close(heads(kind, q, k[:, :, order], v[:, :, order], lambda_, causal=False), out, 1e-10)
    turned = [x[::-1] if x.ndim else x for x in (q, k, v, lambda_)]
    close(heads(kind, *turned, causal=False), out[::-1], EXACT)


@EACH
@given(SEEDS)
def test_a_mask_and_a_bias_for_every_head_may_come_without_a_batch(kind: str, rng: np.random.Generator) -> None:
    x = draw(kind, rng)
    mask, bias = rng.random((x[0].shape[1], T, S)) < 0.8, rng.normal(size=(x[0].shape[1], T, S))
    close(heads(kind, *x, mask, bias), heads(kind, *x, np.stack([mask] * B), np.stack([bias] * B)), EXACT)
    # one row of them is for all heads
    close(heads(kind, *x, mask[:1], bias[0]), heads(kind, *x, mask[0], bias[:1]), EXACT)


@pytest.mark.parametrize(
    ("kind", "name", "file"),
    [
        ("paper", "v1", "multihead_flashdiff_1"),
        ("paper", "v1", "multihead_flashdiff_2"),
        ("v2", "v2", "multihead_flashdiffv2"),
        ("plain", "plain", "multihead_flashdiffv2"),
    ],
)
@pytest.mark.parametrize("size", ["mha", "gqa2", "gqa3"])
def test_equals_the_files_of_unilm(kind: str, name: str, file: str, size: str) -> None:
    """The attention of a layer, from its input to the output of its last projection."""
    case = unilm.case(f"{name}-{size}")
    x, w, h, K = case.x, case.weights, case.options["num_heads"], case.key_heads
    maps, width = (2, x.shape[2] // h // 2) if kind == "paper" else (1, case.options["head_dim"])  # of one head of v
    frequencies = [unilm.THETA ** (-2 * i / width) for i in range(width // 2)]
    turn = rope_cos_sin(np.arange(x.shape[1])[None], frequencies, 1.0, np.float64)

    def split(name: str, count: int, size: int) -> np.ndarray:
        return np.moveaxis(linear(x, w[f"{name}_proj.weight"]).reshape(*x.shape[:2], count, size), 1, 2)

    queries = h if kind == "plain" else 2 * h
    q, k = (rope(split(n, c, width), *turn, interleaved=True) for n, c in (("q", queries), ("k", maps * K)))
    v = split("v", K, maps * width)
    if kind == "paper":
        start = lambda_init(case.options["depth"])
        lambda_ = diff_lambda(*(w[f"lambda_{n}"] for n in ("q1", "k1", "q2", "k2")), start)
        out = linear(diff_heads_paper(q, k, v, lambda_, w["subln.weight"], start), w["out_proj.weight"])
    else:
        lambda_ = diff_lambda_v2(x, w["lambda_proj.weight"]) if kind == "v2" else None
        out = linear(heads(kind, q, k, v, lambda_), w["o_proj.weight"])
    close(out, case.outputs[file], unilm.SAME)


@EACH
def test_a_row_that_sees_nothing_is_zero(kind: str) -> None:
    x = draw(kind, np.random.default_rng(0))
    mask = np.ones((B, x[0].shape[1], T, S), dtype=bool)
    mask[0, :, 1] = False
    out = heads(kind, *x, mask)
    close(out[0, 1], np.zeros(out.shape[2]), EXACT)
    assert np.all(out[1, 1] != 0)
