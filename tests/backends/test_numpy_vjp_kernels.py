"""What the kernels of the way back promise beyond their layers' numbers, which test_numpy_kernels.py holds them to."""

from __future__ import annotations

import numpy as np

from refdiff import layers
from refdiff.backends import kernels_for, ops_for
from refdiff.backends.numpy_vjp_kernels import NumpyVjpKernels


def test_models_on_numpy_get_them() -> None:
    assert isinstance(kernels_for(np), NumpyVjpKernels)
    assert kernels_for(np, "reference") is None


def test_gradients_of_activations_come_feature_major() -> None:
    """Then the product before reads them as they lie."""
    g, x, weight = np.ones((2, 3, 5)), np.ones((2, 3, 7)), np.ones((5, 7))
    dx, _, _ = NumpyVjpKernels().linear_vjp(g, x, weight)
    assert dx.reshape(6, 7).T.flags.c_contiguous


def test_a_kernel_that_declines_leaves_the_call_to_the_layer() -> None:
    ops = ops_for(NumpyVjpKernels())
    nothing = np.full(3, -100)
    logits = np.random.default_rng(0).normal(size=(3, 5))
    assert np.isnan(ops.cross_entropy(logits, nothing))
    assert not ops.cross_entropy_vjp(np.float64(1), logits, nothing)[0].any()
    np.testing.assert_array_equal(
        ops.embedding_vjp(np.ones((2, 4)), np.array([0, 9]), np.ones((5, 4)))[1],
        layers.embedding_vjp(np.ones((2, 4)), np.array([0, 9]), np.ones((5, 4)))[1],
    )
