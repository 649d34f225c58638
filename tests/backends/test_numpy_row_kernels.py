"""Norm and RoPE; that they equal their layers, test_numpy_kernels.py says of every kernel."""

import numpy as np

from refdiff.backends.numpy_row_kernels import ELEMENTS, NumpyRowKernels
from refdiff.backends.workers import Workers


def test_a_long_gradient_of_the_weight_is_the_same_with_one_thread_and_with_three() -> None:
    """Its parts are added in the order of the rows, not in the order in which threads end."""
    g, x = np.random.default_rng(0).normal(size=(2, 9 * ELEMENTS // 64, 64)).astype(np.float32)
    weight, sums = np.ones(64, np.float32), []
    for threads in (1, 3, 3):
        kernels = NumpyRowKernels(Workers(threads))
        with kernels.running():
            sums.append(kernels.rms_norm_vjp(g, x, weight, 1e-5)[1])
    assert (sums[0] == sums[1]).all()
    assert (sums[1] == sums[2]).all()


def test_the_result_lies_densely_and_the_input_is_as_it_was() -> None:
    x = np.arange(2.0 * 3 * 5 * 4).reshape(2, 5, 3, 4).swapaxes(1, 2)
    before = x.copy()
    cos, sin = np.full((2, 1, 1, 5, 2), 0.6)
    assert NumpyRowKernels().rope(x, cos, sin).flags.c_contiguous
    assert NumpyRowKernels().rms_norm(x, None, 1e-5).flags.c_contiguous
    np.testing.assert_array_equal(x, before)
