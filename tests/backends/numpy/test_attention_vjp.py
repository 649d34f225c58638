"""What attention's way back promises beyond its layers' numbers; test_kernels.py tests the numbers."""

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy import NumpyKernels
from refdiff.backends.numpy.layout import feature_view
from tests.backends.tuned import tune


def streams(dtype=np.float64):
    g = np.random.default_rng(0)
    q1, q2 = g.normal(size=(2, 3, 6, 37, 5)).astype(dtype)
    k1, k2 = g.normal(size=(2, 3, 3, 41, 5)).astype(dtype)
    return (g.normal(size=(3, 6, 37, 4)).astype(dtype), q1, k1, q2, k2, g.normal(size=(3, 3, 41, 4)).astype(dtype))


@pytest.mark.parametrize("together", [1, 2 * 2 * 7 * 41, 3 * 3 * 2 * 7 * 41])
def test_blocks_of_any_size_give_the_layer(together):
    """A part of the heads of one row, all of them, those of all rows."""
    kernels = tune(NumpyKernels(1), vjp_scores=2 * 7 * 41, grouped_scores=together)
    found = kernels.diff_attention_vjp(*streams(), np.float64(0.7))
    for one, truth in zip(found, layers.diff_attention_vjp(*streams(), np.float64(0.7)), strict=True):
        np.testing.assert_allclose(one, truth, rtol=1e-11, atol=1e-12)


def test_gradients_come_feature_view():
    """Then RoPE and the products before read them as they lie."""
    *heads, _ = NumpyKernels(2).diff_attention_vjp(*streams(), np.float64(0.7))
    assert all(feature_view(x) is not None for x in heads)


def test_which_thread_takes_what_changes_no_number():
    kernels = tune(NumpyKernels(2), vjp_scores=2 * 7 * 41, grouped_scores=2 * 7 * 41)
    results = [kernels.diff_attention_vjp(*streams(np.float32), np.float32(0.7))]
    with kernels.inference_scope():
        results += [kernels.diff_attention_vjp(*streams(np.float32), np.float32(0.7)) for _ in range(3)]
    for one in results[1:]:
        for a, b in zip(results[0], one, strict=True):
            np.testing.assert_array_equal(a, b)
