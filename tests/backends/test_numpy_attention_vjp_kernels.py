"""What attention's way back promises beyond its layers' numbers, which test_numpy_kernels.py holds it to."""

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends import numpy_attention_kernels, numpy_attention_vjp_kernels
from refdiff.backends.numpy_row_kernels import feature_major
from refdiff.backends.numpy_vjp_kernels import NumpyVjpKernels
from refdiff.backends.workers import Workers


def streams(dtype=np.float64):
    g = np.random.default_rng(0)
    q1, q2 = g.normal(size=(2, 3, 6, 37, 5)).astype(dtype)
    k1, k2 = g.normal(size=(2, 3, 3, 41, 5)).astype(dtype)
    return (g.normal(size=(3, 6, 37, 4)).astype(dtype), q1, k1, q2, k2, g.normal(size=(3, 3, 41, 4)).astype(dtype))


@pytest.mark.parametrize("together", [1, 2 * 2 * 7 * 41, 3 * 3 * 2 * 7 * 41])
def test_blocks_of_any_size_give_the_layer(together, monkeypatch):
    """A part of the heads of one row, all of them, those of all rows."""
    monkeypatch.setattr(numpy_attention_vjp_kernels, "BLOCK", 2 * 7 * 41)
    monkeypatch.setattr(numpy_attention_kernels, "TOGETHER", together)
    found = NumpyVjpKernels(Workers(1)).diff_attention_vjp(*streams(), np.float64(0.7))
    for one, truth in zip(found, layers.diff_attention_vjp(*streams(), np.float64(0.7)), strict=True):
        np.testing.assert_allclose(one, truth, rtol=1e-11, atol=1e-12)


def test_gradients_come_feature_major():
    """Then RoPE and the products before read them as they lie."""
    *heads, _ = NumpyVjpKernels(Workers(2)).diff_attention_vjp(*streams(), np.float64(0.7))
    assert all(feature_major(x) is not None for x in heads)


def test_which_thread_takes_what_changes_no_number(monkeypatch):
    monkeypatch.setattr(numpy_attention_vjp_kernels, "BLOCK", 2 * 7 * 41)
    monkeypatch.setattr(numpy_attention_kernels, "TOGETHER", 2 * 7 * 41)
    kernels = NumpyVjpKernels(Workers(2))
    results = [kernels.diff_attention_vjp(*streams(np.float32), np.float32(0.7))]
    with kernels.running():
        results += [kernels.diff_attention_vjp(*streams(np.float32), np.float32(0.7)) for _ in range(3)]
    for one in results[1:]:
        for a, b in zip(results[0], one, strict=True):
            np.testing.assert_array_equal(a, b)
