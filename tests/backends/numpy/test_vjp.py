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


def rows(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def of_a_token(kernels, outputs, terms):
    x, weight = rows(0, 1, terms), rows(1, outputs, terms)
    return [kernels.linear(x, weight), *kernels.linears(x, {"weight": weight}, {"weight": weight})]


CALLS = {
    "attention": lambda kernels: kernels.diff_attention_vjp(*streams(np.float32), np.float32(0.7)),
    "weight": lambda kernels: kernels.linear_vjp(rows(0, 3500, 24), rows(1, 3500, 40), rows(2, 24, 40))[1:],
    "norm": lambda kernels: kernels.rms_norm_vjp(*rows(0, 2, 9 * Tuning.block_elements // 64, 64), rows(1, 64), 1e-5),
    "a token, long": lambda kernels: of_a_token(kernels, 519, 8192),
    "a token, short": lambda kernels: of_a_token(kernels, 4100, 512),
    "a token, few outputs": lambda kernels: of_a_token(kernels, 3, 2**18),
}


def test_results_do_not_depend_on_threads_or_scheduling():
    """The parts of a sum are of a number of rows, and added in their order."""
    for name, call in CALLS.items():
        results = []
        for threads in (1, 2, 3, 3):
            kernels = tune(NumpyKernels(threads), vjp_scores=2 * 7 * 41, grouped_scores=2 * 7 * 41)
            with kernels.inference_scope():
                results.append(call(kernels))
        for one in results[1:]:
            for a, b in zip(results[0], one, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)


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
