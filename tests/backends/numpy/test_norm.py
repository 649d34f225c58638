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
