"""Norms and sums; that they equal their layers, test_kernels.py tests of every kernel."""

import numpy as np
import pytest

from refdiff.backends.numpy import NumpyKernels
from refdiff.backends.numpy.layout import feature_view
from refdiff.backends.numpy.tuning import Tuning


def test_a_long_gradient_of_the_weight_is_the_same_with_one_thread_and_with_three() -> None:
    """Its parts are added in the order of the rows, not in the order in which threads end."""
    g, x = np.random.default_rng(0).normal(size=(2, 9 * Tuning.block_elements // 64, 64)).astype(np.float32)
    weight, sums = np.ones(64, np.float32), []
    for threads in (1, 3, 3):
        kernels = NumpyKernels(threads)
        with kernels.inference_scope():
            sums.append(kernels.rms_norm_vjp(g, x, weight, 1e-5)[1])
    assert (sums[0] == sums[1]).all()
    assert (sums[1] == sums[2]).all()


@pytest.mark.parametrize("shape", [(1, 7, 5), (2, 3 * Tuning.block_elements // 64 + 5, 64)])
def test_sums_beside_the_residual_path_are_those_of_numpy(shape: tuple[int, ...]) -> None:
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
