"""Each way of going through heads, queries and keys, held to the layer; which way is taken, and what it holds."""

import tracemalloc

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy import NumpyKernels, attention, workspace
from refdiff.backends.numpy.gemm_blocks import key_blocks
from refdiff.backends.numpy.tuning import Tuning, has_avx512
from tests.backends.tuned import tune
from tests.backends.vjp_cases import streams

KERNELS, PIECES = (tune(NumpyKernels(2), unpacked_tokens=n) for n in (1, 24))  # without and with AVX-512
WAYS = ("_attend_at_once", "decode_attention", "_attend_by_blocks")
LEAST = Tuning.few_queries


@pytest.fixture
def taken(monkeypatch):
    ways = []
    for way in WAYS:
        whole = getattr(attention, way)
        monkeypatch.setattr(attention, way, lambda *a, w=way, f=whole: (ways.append(w), f(*a))[1])
    return ways


@pytest.mark.parametrize(
    ("T", "S", "way"),
    [
        (1, 2053, "decode_attention"), (LEAST - 1, 1031, "decode_attention"), (LEAST, LEAST, "_attend_at_once"),
        (LEAST, 3001, "_attend_by_blocks"), (97, 97, "_attend_at_once"), (211, 307, "_attend_by_blocks"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", [1.0, 90.0], ids=["small", "large"])
def test_every_code_path_equals_the_layer_for_scores_of_any_size(taken, T, S, way, scale):
    """Scores of 40 and more have their maximum taken away: without that, e to the score would be infinite."""
    inputs = streams(2, 6, 3, T, S, 5, 4, scale)
    padding = np.ones((2, 1, 1, S), bool)
    padding[1, ..., : S - T + 1] = False
    for mask in (None, padding):
        with KERNELS.inference_scope():
            found = KERNELS.diff_attention(*inputs, mask)
        np.testing.assert_allclose(found, layers.diff_attention(*inputs, mask), rtol=1e-10, atol=1e-12)
    assert taken == [way, way]


@pytest.mark.parametrize(
    ("T", "S", "kernels", "way"),
    [
        (1, 67, KERNELS, "decode_attention"), (5, 1031, KERNELS, "decode_attention"),
        (211, 307, KERNELS, "_attend_by_blocks"), (90, 333, PIECES, "_attend_by_blocks"),
    ],
)  # fmt: skip
def test_items_of_a_batch_do_not_see_each_other(taken, T, S, kernels, way):
    """To the last bit, whatever the neighbor has: large scores, NaN or infinite numbers."""
    calm, steep = ([np.asarray(x, np.float32) for x in streams(2, 4, 2, T, S, 32, 64, s)] for s in (1.0, 90.0))
    with kernels.inference_scope(), np.errstate(all="ignore"):
        alone, other = (kernels.diff_attention(*x) for x in (calm, steep))
        for neighbor in (steep, [np.full_like(x, np.nan) for x in steep], [np.full_like(x, np.inf) for x in steep]):
            mixed = [np.concatenate([x[:1], y[1:]]) for x, y in zip(calm[:5], neighbor[:5], strict=True)]
            found = kernels.diff_attention(*mixed, calm[5])
            np.testing.assert_array_equal(found[0], alone[0])
            if neighbor is steep:
                np.testing.assert_array_equal(found[1], other[1])
    assert taken == [way] * 5


def test_blocks_of_any_size_give_the_layer():
    inputs = streams(1, 4, 2, 97, 101, 8, 6)
    expected = layers.diff_attention(*inputs)
    for scores, queries, cached in ((1, 128, 1), (10**4, 13, 100), (10**9, 128, 10**3)):
        kernels = tune(NumpyKernels(2), block_scores=scores, block_queries=queries, cached_scores=cached)
        np.testing.assert_allclose(kernels.diff_attention(*inputs), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kernels", [pytest.param(KERNELS, marks=pytest.mark.slow), PIECES], ids=["packed", "pieces"])
@pytest.mark.parametrize(("H", "K", "most"), [(4, 1, 64 * 2**20), pytest.param(16, 4, 100e6, marks=pytest.mark.slow)])
def test_attention_over_8192_tokens_needs_little_beside_its_result(H, K, most, kernels, monkeypatch) -> None:
    """With the heads of a group of the full-size model, and with all; the scores of a group would be 4 GB."""
    monkeypatch.setattr(workspace, "_memory", lambda size: np.empty(size + workspace.CACHE_LINE, np.uint8))  # is traced
    g = np.random.default_rng(0)
    q1, q2 = g.standard_normal((2, 1, H, 8192, 64), np.float32)
    k1, k2 = g.standard_normal((2, 1, K, 8192, 64), np.float32)
    v = g.standard_normal((1, K, 8192, 128), np.float32)
    tracemalloc.start()
    try:
        with kernels.inference_scope():
            result = kernels.diff_attention(q1, k1, q2, k2, v, np.float32(0.5))
        assert tracemalloc.get_traced_memory()[1] - result.nbytes < most
    finally:
        tracemalloc.stop()


@pytest.fixture
def laid(monkeypatch):
    """How many keys were copied into blocks."""
    numbers = []

    def blocks(rt, k):
        numbers.append(k.shape[2])
        return key_blocks(rt, k)

    monkeypatch.setattr(attention, "key_blocks", blocks)
    return numbers


def draws(number, B, case, scale, lam):
    """Arguments of attention over two maps: in float32, and the same in float64."""
    H, K, T, S, d, e = case
    for seed in range(number):
        g = np.random.default_rng(seed)
        q, k = scale * g.standard_normal((2, B, H, T, d)), g.standard_normal((2, B, K, S, d))
        args = [x.astype(np.float32) for x in (q[0], k[0], q[1], k[1], g.standard_normal((B, K, S, e)), np.array(lam))]
        yield args, [x.astype(np.float64) for x in args]


PROMPTS = [(16, 4, 150, 150, 64, 128), (2, 1, 300, 333, 32, 64), (4, 4, 70, 2100, 80, 64)]
"""(H, K, T, S, d, e): attention of many queries, over keys that are no whole blocks."""


@pytest.mark.parametrize(
    ("case", "scale", "lam", "see"),
    [
        pytest.param(
            case,
            *numbers,
            see,
            marks=[] if i == j == k else pytest.mark.nightly if (i + j + k) % 3 else pytest.mark.slow,
        )
        for i, case in enumerate(PROMPTS)
        for j, numbers in enumerate([(0.05, 0.95), (1.0, 0.7), (30.0, 0.2)])
        for k, see in enumerate(["causal", "padded", "all"])
    ],
)
def test_chunked_prompts_are_as_accurate_as_the_layer_over_several_draws(laid, case, scale, lam, see):
    """Over both maps and over one; padding hides keys from one row of the batch."""
    _, _, T, S, _, _ = case
    mask, options = np.ones((2, 1, 1, S), np.bool_), {"causal": see != "all"}
    if see == "padded":
        mask[1, ..., : min(S // 3, S - T + 1)] = False
    squares = np.zeros((2, 2))
    for args, exact in draws(6, 2, case, scale, lam):
        for i, (name, at) in enumerate((("diff_attention", [0, 1, 2, 3, 4, 5]), ("plain_heads", [0, 1, 4]))):
            layer = getattr(layers, name)
            truth = layer(*(exact[n] for n in at), mask, **options)
            with PIECES.inference_scope():
                found = getattr(PIECES, name)(*(args[n] for n in at), mask, **options)
            of_layer = layer(*(args[n] for n in at), mask, **options)
            squares[i] += [np.square(y - truth).sum() for y in (found, of_layer)]
    # at most 1.31 for flat maps of which little is left, 1.33 in packed products. Without AVX-512, where no kernel
    # takes such pieces, BLAS sums otherwise: 1.36
    assert (squares[:, 0] <= (1.35 if has_avx512() else 1.4) ** 2 * squares[:, 1]).all()
    assert laid == [S] * 3 * 6


def test_chunked_prompts_with_a_bias_and_feature_major_values(laid):
    """As without a cache, where values come from a product; and the log-sum-exps that the way back starts from."""
    inputs = [np.asarray(x, np.float32) for x in streams(2, 4, 2, 90, 333, 32, 64)]
    inputs[4] = inputs[4].transpose(1, 3, 0, 2).copy().transpose(2, 0, 3, 1)
    bias = np.random.default_rng(1).standard_normal((2, 4, 90, 333), np.float32)
    exact = [np.asarray(x, np.float64) for x in inputs]
    with PIECES.inference_scope():
        found = PIECES.diff_attention(*inputs, None, bias)
        again, lse = PIECES.diff_attention_with_lse(*inputs, None, bias)
    np.testing.assert_allclose(found, layers.diff_attention(*exact, None, bias.astype(np.float64)), rtol=0, atol=2e-5)
    np.testing.assert_array_equal(again, found)
    assert laid == [333] * 4
    for (top, total), q, k in zip(lse, exact[0:3:2], exact[1:4:2], strict=True):
        scores = q @ np.repeat(k, 2, axis=1).swapaxes(2, 3) / np.sqrt(32) + bias
        scores[..., np.triu(np.ones((90, 333), bool), 333 - 90 + 1)] = -np.inf
        np.testing.assert_allclose(top + np.log(total), np.log(np.exp(scores).sum(-1, keepdims=True)), atol=1e-5)


@pytest.mark.parametrize("T", [1, 5])
def test_the_mask_of_one_batch_item_does_not_change_another(T):
    """To the last bit: of few keys the largest score is taken away, of many it is not."""
    q1, k1, q2, k2, v, lam = streams(2, 6, 3, T, 301, 5, 4, 1.0)
    padded = np.ones((2, 1, 1, 301), dtype=np.bool_)
    padded[1, ..., :-T] = False
    with KERNELS.inference_scope():
        beside, alike = (KERNELS.diff_attention(q1, k1, q2, k2, v, lam, m) for m in (padded, np.ones_like(padded)))
    np.testing.assert_array_equal(beside[0], alike[0])
    assert np.abs(beside[1] - alike[1]).max() > 0.01


@pytest.mark.parametrize(("T", "S"), [(1, 67), (5, 1031)])
def test_batch_items_are_independent_where_both_maps_share_one_product(T, S):
    def call(q, k, v):
        with KERNELS.inference_scope(), np.errstate(invalid="ignore"):
            return KERNELS.diff_heads_hf(q, k, v, np.float64(0.7), 0.2, 1e-5)

    g = np.random.default_rng(T)
    q, k, v = g.normal(size=(3, 12, T, 5)), g.normal(size=(3, 6, S, 5)), g.normal(size=(3, 3, S, 10))
    q = q.transpose(1, 3, 0, 2).copy().transpose(2, 0, 3, 1)  # as a projection leaves it
    together = call(q, k, v)
    np.testing.assert_allclose(together, layers.diff_heads_hf(q, k, v, np.float64(0.7), 0.2, 1e-5), rtol=1e-10)
    for spoiled in (90.0, np.nan):
        factors = np.array([1.0, spoiled, 1.0])[:, None, None, None]
        found = call(q * factors, k, v)
        np.testing.assert_array_equal(found[[0, 2]], together[[0, 2]])
        assert not np.array_equal(found[1], together[1])


DECODING = [(16, 4, 1, S, 64, 128) for S in (5, 61, 63, 128, 150, 201, 700)]
DECODING += [(2, 1, 1, 61, 32, 64), (4, 4, 3, 63, 128, 16), (2, 2, 2, 62, 64, 64), (16, 4, 5, 128, 64, 128)]
"""(H, K, T, S, d, e): attention of few queries, from a few keys on."""


@pytest.mark.parametrize("case", DECODING, ids=str)
@pytest.mark.parametrize(
    ("scale", "lam"),
    [pytest.param(0.05, 0.95, marks=pytest.mark.slow), (1.0, 0.7), pytest.param(3.0, 0.2, marks=pytest.mark.slow)],
)
def test_few_queries_are_as_accurate_as_the_layer_over_many_draws(
    case: tuple[int, ...], scale: float, lam: float
) -> None:
    """What is largest of one draw is luck: the squares of fifty are not."""
    squares = np.zeros(2)
    for args, exact in draws(50, 1, case, scale, lam):
        truth = layers.diff_attention(*exact)
        with KERNELS.inference_scope():
            found = KERNELS.diff_attention(*args)
        squares += [np.square(y - truth).sum() for y in (found, layers.diff_attention(*args))]
    assert squares[0] <= 1.2**2 * squares[1]
