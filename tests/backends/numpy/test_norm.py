"""Norms and sums; that they equal their layers, test_kernels.py tests of every kernel."""

import numpy as np
import pytest

from refdiff.backends.numpy import NumpyKernels
from refdiff.backends.numpy.layout import feature_view
from refdiff.backends.numpy.tuning import Tuning


@pytest.mark.parametrize("shape", [(2, 3 * Tuning.block_elements // 64 + 5, 64), (1, 7, 5)])
def test_residual_add_equals_numpy(shape: tuple[int, ...]) -> None:
    """To the last bit, and feature-major like what is added."""
    x, y = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    turned = [np.moveaxis(np.moveaxis(a, -1, 0).copy(), 0, -1) for a in (x, y)]
    kernels = NumpyKernels(2)
    with kernels.inference_scope():
        total = kernels.residual_add(*turned)
    np.testing.assert_array_equal(total, x + y)
    assert feature_view(total) is not None
    for a, b in ((x, y), (turned[0], y), (turned[0], turned[1].astype(np.float64)), (turned[0], turned[1][:, :1])):
        np.testing.assert_array_equal(kernels.residual_add(a, b), a + b)


@pytest.mark.parametrize("shape", [(1, 3, 2 * Tuning.block_tokens + 5, 64), (7, 5), (2, 7, 5), (2, 3, 7, 5)])
def test_feature_major_arrays_keep_their_layout(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    if x.ndim == 4:
        turned = x.transpose(1, 3, 0, 2).copy().transpose(2, 0, 3, 1)
    else:
        turned = np.moveaxis(np.moveaxis(x, -1, 0).copy(), 0, -1)
    columns = feature_view(turned)
    assert columns is not None
    assert np.shares_memory(columns, turned)
    assert feature_view(x) is None
    found, weight = NumpyKernels(2), np.arange(1.0, shape[-1] + 1)
    normed = found.rms_norm(turned, weight, 1e-5)
    few = columns.shape[-1] <= Tuning.rowwise_tokens  # which are normed one after the other, and lie like that then
    assert normed.flags.c_contiguous if few else feature_view(normed) is not None
    np.testing.assert_allclose(normed, found.rms_norm(x, weight, 1e-5), rtol=1e-13)
