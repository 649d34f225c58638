"""Few queries: how keys and values are cut, that rows do not see each other, how near the result is to the truth."""

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy import NumpyKernels
from refdiff.backends.numpy.tuning import Tuning
from tests.backends.vjp_cases import streams

KERNELS = NumpyKernels(2)


@pytest.mark.parametrize("T", [1, 5])
def test_how_few_keys_a_neighbour_sees_changes_nothing(T):
    """To the last bit: of few keys the largest score is taken away, of many it is not."""
    q1, k1, q2, k2, v, lam = streams(2, 6, 3, T, 301, 5, 4, 1.0)
    padded = np.ones((2, 1, 1, 301), dtype=np.bool_)
    padded[1, ..., :-T] = False
    with KERNELS.inference_scope():
        beside, alike = (KERNELS.diff_attention(q1, k1, q2, k2, v, lam, m) for m in (padded, np.ones_like(padded)))
    np.testing.assert_array_equal(beside[0], alike[0])
    assert np.abs(beside[1] - alike[1]).max() > 0.01


@pytest.mark.parametrize(("T", "S"), [(1, 67), (5, 1031)])
def test_rows_of_the_batch_do_not_see_each_other_where_both_maps_are_multiplied_at_once(T, S):
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


@pytest.mark.parametrize("owns_cores", [True, False])
def test_a_long_cache_is_multiplied_whole_where_blas_has_the_threads(owns_cores, monkeypatch):
    S, d, G = 8200, 64, 4
    lengths, matmul = [], np.matmul

    def noted(a, b, **options):
        if b.strides[-2] < b.strides[-1]:  # keys, on their side
            lengths.append(b.shape[-1])
        return matmul(a, b, **options)

    assert S * d * G >= Tuning.decode_blas_ops
    exact = streams(1, 2 * G, 2, 1, S, d, 128)
    inputs = [np.asarray(x, np.float32) for x in exact]
    exact = [np.asarray(x, np.float64) for x in inputs]
    want, plain = layers.diff_attention(*exact), layers.diff_attention(*inputs)
    with KERNELS.runtime.workers.running(owns_cores=owns_cores):
        np.testing.assert_allclose(KERNELS.diff_attention(*exact), want, rtol=1e-10, atol=1e-12)
        found = KERNELS.diff_attention(*inputs)
        monkeypatch.setattr(np, "matmul", noted)
        np.testing.assert_array_equal(KERNELS.diff_attention(*inputs), found)
    assert set(lengths) == ({Tuning.key_piece, S % Tuning.key_piece} if owns_cores else {S})
    assert abs(found - want).max() <= 2 * abs(plain - want).max() + np.finfo(np.float32).eps * abs(want).max()


DECODING = [(16, 4, 1, S, 64, 128) for S in (5, 61, 63, 128, 150, 201, 700)]
DECODING += [(2, 1, 1, 61, 32, 64), (4, 4, 3, 63, 128, 16), (2, 2, 2, 62, 64, 64), (16, 4, 5, 128, 64, 128)]
"""(H, K, T, S, d, e): attention of few queries, from a few keys on."""


@pytest.mark.parametrize("case", DECODING, ids=str)
@pytest.mark.parametrize(
    ("scale", "lam"),
    [pytest.param(0.05, 0.95, marks=pytest.mark.slow), (1.0, 0.7), pytest.param(3.0, 0.2, marks=pytest.mark.slow)],
)
def test_of_many_draws_few_queries_are_as_near_to_the_truth_as_the_layer(
    case: tuple[int, ...], scale: float, lam: float
) -> None:
    """What is largest of one draw is luck: the squares of fifty are not."""
    H, K, T, S, d, e = case
    squares = np.zeros(2)
    for seed in range(50):
        g = np.random.default_rng(seed)
        q, k = scale * g.standard_normal((2, 1, H, T, d)), g.standard_normal((2, 1, K, S, d))
        args = [x.astype(np.float32) for x in (q[0], k[0], q[1], k[1], g.standard_normal((1, K, S, e)), np.array(lam))]
        truth = layers.diff_attention(*(x.astype(np.float64) for x in args))
        with KERNELS.inference_scope():
            found = KERNELS.diff_attention(*args)
        squares += [np.square(y - truth).sum() for y in (found, layers.diff_attention(*args))]
    assert squares[0] <= 1.2**2 * squares[1]
