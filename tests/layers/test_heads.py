"""Each kind of heads: differential attention of their streams, and what follows it."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff import layers
from refdiff.layers import (
    diff_attention,
    diff_heads_hf,
    diff_heads_paper,
    diff_heads_v2,
    diff_lambda,
    diff_lambda_v2,
    lambda_init,
    linear,
    plain_heads,
    rms_norm,
    rope,
    rope_cos_sin,
    value_pairs_hf,
)
from tests.golden import unilm
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS
from tests.tolerances import EXACT, FLOAT64, close

B, T, S, d = 2, 5, 7, 3
START, EPS, WEIGHT = 0.35, 1e-5, np.linspace(-1, 2, 2 * d)
NORMED = ("hf", "paper")
ALONE = ("plain",)  # heads that are in no pair
LAYERS = [name for name in layers.__all__ if "heads" in name and not name.endswith("_vjp")]
EACH = pytest.mark.parametrize("kind", [name.replace("diff_heads_", "").replace("_heads", "") for name in LAYERS])


def heads(kind: str, q: Any, k: Any, v: Any, lambda_: Any, *seen: Any, eps: float = EPS, **options: bool) -> np.ndarray:
    """The layer of a kind; plain heads have no λ."""
    match kind:
        case "hf":
            return diff_heads_hf(q, k, v, lambda_, START, eps, *seen, **options)
        case "paper":
            return diff_heads_paper(q, k, v, lambda_, WEIGHT, START, eps, *seen, **options)
        case "v2":
            return diff_heads_v2(q, k, v, lambda_, *seen, **options)
        case "plain":
            return plain_heads(q, k, v, *seen, **options)
    raise AssertionError(f"tests/layers/test_heads.py has no case for heads of {kind}")


def draw(kind: str, rng: np.random.Generator, K: int = 2, n: int = 3, T: int = T, S: int = S) -> list[np.ndarray]:
    """q, k, v and λ of n outputs to each of K heads of values, which are small enough for a norm's ε to matter."""
    q = rng.normal(size=(B, (1 if kind in ALONE else 2) * K * n, T, d))
    k = rng.normal(size=(B, (2 if kind in NORMED else 1) * K, S, d))
    v = rng.normal(size=(B, K, S, 2 * d)) * 10.0 ** rng.uniform(-4, 1, size=(B, K, 1, 1))
    lambda_ = rng.uniform(size=(B, K * n, T, 1)) if kind == "v2" else np.asarray(0.0 if kind in ALONE else rng.normal())
    return [q, k, v, lambda_]


def streams(kind: str, x: Any) -> tuple[Any, Any]:
    """The heads (axis 1) of the first map, and those of the second."""
    if kind in ALONE or x is None:
        return x, x
    return (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]) if kind == "hf" else (x[:, 0::2], x[:, 1::2])


@EACH
@settings(max_examples=settings().max_examples // 3)
@given(SEEDS, st.booleans(), st.sampled_from([1e-12, 1e-5, 0.1]))
def test_precision(kind: str, rng: np.random.Generator, causal: bool, eps: float) -> None:
    """Of two heads of values: of one, every pairing is the same."""
    K, n, T, S = 2, 2, 2, 4
    q, k, v, lambda_ = draw(kind, rng, K, n, T, S)
    mask, bias = rng.random((B, q.shape[1], T, S)) < 0.7, rng.normal(size=(B, q.shape[1], T, S))
    mask[0, :, 1] = False
    visible = mask & (np.arange(S) <= np.arange(T)[:, None] + S - T) if causal else mask
    apart = np.concatenate([v[..., :d], v[..., d:]], axis=1) if kind == "hf" else v
    given = [exact(x) for x in (q, k, apart, lambda_[..., 0] if kind == "v2" else lambda_)]
    match kind:
        case "hf":
            expected = by_loops.diff_heads_hf(*given, START, eps, visible, bias)
        case "paper":
            expected = by_loops.diff_heads_paper(*given, exact(WEIGHT), START, eps, visible, bias)
        case "v2":
            expected = by_loops.diff_heads_v2(*given, visible, bias)
        case "plain":
            expected = by_loops.plain_heads(*given[:3], visible, bias)
    out = heads(kind, q, k, v, lambda_, mask, bias, eps=eps, causal=causal)
    # where the maps nearly cancel, ten times more of the rounding shows
    close(out.reshape(B, T, K * n, -1), rounded(expected).reshape(B, T, K * n, -1), 10 * FLOAT64)


@EACH
@given(SEEDS, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans())
def test_heads_are_differential_attention_of_their_branches(
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


# ---- one kind alone


@given(SEEDS, st.integers(1, 3))
def test_values_of_both_halves_are_side_by_side(rng: np.random.Generator, pairs: int) -> None:
    first, second = rng.normal(size=(2, B, pairs, S, d))
    joined = np.concatenate([first, second], axis=-1)
    close(value_pairs_hf(np.concatenate([first, second], axis=1)), joined, EXACT)


@given(SEEDS)
def test_epsilon_of_the_paper_is_unilms_unless_given(rng: np.random.Generator) -> None:
    """Where it is as large as the mean square."""
    q, k, v, lambda_ = draw("paper", rng)
    small = (q, k, 1e-3 * v, lambda_, WEIGHT, START)
    close(diff_heads_paper(*small), diff_heads_paper(*small, 1e-5), EXACT)


def test_one_token_by_hand() -> None:
    # it sees itself alone: A₁ = A₂ = 1, the head is 0.5 · (1, 7), its mean square 25 / 4
    one, v, half, weight = np.ones((1, 2, 1, 1)), np.array([[[[1.0, 7.0]]]]), np.array(0.5), np.array([1.0, -10.0])
    expected = np.array([[[0.8 * 0.2, 0.8 * 1.4]]])
    close(diff_heads_hf(one, one, v, half, 0.2, 0.0), expected, FLOAT64)
    close(diff_heads_paper(one, one, v, half, weight, 0.2, 0.0), expected * weight, FLOAT64)
    # with ε = 75 / 4 the root doubles
    close(diff_heads_hf(one, one, v, half, 0.2, 75 / 4), expected / 2, FLOAT64)
    close(diff_heads_paper(one, one, v, half, weight, 0.2, 75 / 4), expected * weight / 2, FLOAT64)
    # λ = 2: the head turns over
    close(diff_heads_hf(one, one, v, np.array(2.0), 0.0, 0.0), np.array([[[-0.2, -1.4]]]), FLOAT64)


@given(SEEDS, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans())
def test_paper_equals_hf_after_a_permutation_of_heads(
    rng: np.random.Generator, K: int, n: int, causal: bool, masked: bool
) -> None:
    q, k, v, lambda_ = draw("paper", rng, K, n)
    mask = rng.random((B, 2 * K * n, T, S)) < 0.8 if masked else None
    bias = rng.normal(size=(B, 2 * K * n, T, S)) if masked else None
    out = diff_heads_paper(q, k, v, lambda_, np.ones(2 * d), START, EPS, mask, bias, causal=causal)
    q, k, mask, bias = (x if x is None else np.concatenate(streams("paper", x), axis=1) for x in (q, k, mask, bias))
    close(diff_heads_hf(q, k, v, lambda_, START, EPS, mask, bias, causal=causal), out, EXACT)


@given(SEEDS, st.integers(1, 3), st.integers(1, 3))
def test_v2_is_plain_attention_with_twice_the_heads_subtracted_in_pairs(
    rng: np.random.Generator, K: int, n: int
) -> None:
    q, k, v, lambda_ = draw("v2", rng, K, n)
    plain = plain_heads(q, k, v).reshape(B, T, K * n, 2, 2 * d)
    expected = plain[:, :, :, 0] - np.moveaxis(lambda_, 1, 2) * plain[:, :, :, 1]
    close(diff_heads_v2(q, k, v, lambda_), expected.reshape(B, T, -1), 1e-12)


@given(SEEDS)
def test_two_concatenated_branches_are_one_map_of_summed_scores(rng: np.random.Generator) -> None:
    """Ye et al. 2024, eq. 8: softmax((Q₁K₁ᵀ + Q₂K₂ᵀ) / √2d) is plain attention with heads of width 2d."""
    q1, k1, v, _ = draw("plain", rng, 2, 2)
    q2, k2 = rng.normal(size=q1.shape), rng.normal(size=k1.shape)
    scores = (q1 @ np.repeat(k1, 2, axis=1).mT + q2 @ np.repeat(k2, 2, axis=1).mT) / np.sqrt(2 * d)
    powers = np.exp(scores)
    expected = powers / powers.sum(axis=-1, keepdims=True) @ np.repeat(v, 2, axis=1)
    out = plain_heads(np.concatenate([q1, q2], axis=-1), np.concatenate([k1, k2], axis=-1), v, causal=False)
    close(out, np.moveaxis(expected, 1, 2).reshape(B, T, -1), 1e-12)


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
