"""What the kernels of the backward pass promise beyond their layers' numbers, which test_kernels.py tests."""

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy import NumpyKernels
from refdiff.backends.numpy.tuning import Tuning
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


def test_which_thread_takes_what_changes_no_number():
    kernels = tune(NumpyKernels(2), vjp_scores=2 * 7 * 41, grouped_scores=2 * 7 * 41)
    results = [kernels.diff_attention_vjp(*streams(np.float32), np.float32(0.7))]
    with kernels.inference_scope():
        results += [kernels.diff_attention_vjp(*streams(np.float32), np.float32(0.7)) for _ in range(3)]
    for one in results[1:]:
        for a, b in zip(results[0], one, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_weight_s_gradient_over_many_tokens_is_the_same_with_one_thread_and_with_three() -> None:
    """Its parts are of a number of tokens, and added in their order."""
    g, x, weight = (
        np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((3500, 24), (3500, 40), (24, 40))
    )
    found = []
    for threads in (1, 3):
        kernels = NumpyKernels(threads)
        with kernels.inference_scope():
            found.append(kernels.linear_vjp(g, x, weight)[1])
    assert (found[0] == found[1]).all()
    assert len(x) > Tuning.deep_ratio * 40
    np.testing.assert_allclose(found[0], g.T.astype(np.float64) @ x, rtol=1e-4, atol=1e-3)


def test_memory_is_kept_from_pass_to_pass() -> None:
    """For as long as it is asked for, not longer, and what is still referred to is not handed out."""
    kernels = NumpyKernels(1)
    g, x, weight = np.ones((4000, 64)), np.ones((4000, 32)), np.ones((64, 32))

    def block() -> int:
        with kernels.inference_scope():
            dx = kernels.linear_vjp(g, x, weight)[0]
        while dx.base is not None:
            dx = dx.base
        return int(dx.ctypes.data)

    with kernels.repeated_scope():
        with kernels.repeated_scope():
            first = block()
        assert block() == first
        assert kernels.runtime.workspace._blocks
        with kernels.inference_scope():
            held = kernels.linear_vjp(g, x, weight)[0]
        assert block() != first
    assert not kernels.runtime.workspace._blocks
    assert held.all()
