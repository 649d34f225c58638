"""Weights of 16 bits, expanded where they are used: every number they can hold, and their products."""

import ml_dtypes
import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy_stored import EVEN, NUMBERS, ODD, ROWS, expand, has_words, is_stored
from refdiff.backends.numpy_vjp_kernels import NumpyVjpKernels
from refdiff.backends.workers import Workers

TYPES = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
FAST = NumpyVjpKernels(Workers(3))


@pytest.mark.parametrize("out", [np.float32, np.float64])
@pytest.mark.parametrize("kind", TYPES)
def test_every_number_is_expanded_exactly(kind: np.dtype, out: type) -> None:
    numbers = np.arange(2**16, dtype=np.uint16).view(kind).reshape(256, 256)
    expanded = np.empty(numbers.shape, out)
    expand(numbers, expanded)
    with np.errstate(invalid="ignore"):
        right = numbers.astype(np.float32)
    np.testing.assert_array_equal(expanded, right)
    np.testing.assert_array_equal(np.signbit(expanded), np.signbit(right))


def test_every_number_is_the_half_of_a_word() -> None:
    numbers = np.arange(2**16, dtype=np.uint16).view(TYPES[0]).reshape(256, 256)
    assert has_words(numbers, np.float32)
    for place in (EVEN, ODD):
        expanded = np.empty((256, 128), np.float32)
        expand(numbers, expanded, place)
        right = numbers[:, place].view(np.uint16).astype(np.uint32) << 16
        np.testing.assert_array_equal(expanded.view(np.uint32), right)


def test_what_has_no_words() -> None:
    numbers = np.zeros((4, 6), TYPES[0])
    assert has_words(numbers, np.float32)
    for other, dtype in (
        (numbers, np.float64),
        (numbers.view(np.float16), np.float32),
        (numbers[:, 1:], np.float32),
        (numbers[:, :4], np.float32),
        (np.zeros(26, TYPES[0])[1:25].reshape(4, 6), np.float32),
    ):
        assert not has_words(other, dtype)


def test_which_weights_are_stored() -> None:
    assert all(is_stored(np.ones(3, kind)) for kind in TYPES)
    assert not any(is_stored(np.ones(3, kind)) for kind in (np.float32, np.float64))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 2, 7, 25, 130])
@pytest.mark.parametrize(("outputs", "inputs"), [(13, 1031), (ROWS, 1031), (3 * NUMBERS // 1030 + 5, 1030)])
def test_a_product_is_that_of_the_expanded_weight(
    kind: np.dtype, dtype: type, rows: int, outputs: int, inputs: int
) -> None:
    rng = np.random.default_rng(rows)
    x, bias = rng.normal(size=(rows, inputs)).astype(dtype), rng.normal(size=outputs).astype(dtype)
    weight = rng.normal(size=(outputs, inputs)).astype(kind)
    weight.flags.writeable = False
    expanded = weight.astype(dtype)
    with FAST.running():
        result = FAST.linear(x, weight, bias)
        same = FAST.linear(x, weight, bias)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, same)
    truth = layers.linear(x.astype(np.float64), expanded.astype(np.float64), bias.astype(np.float64))
    reference = layers.linear(x, expanded, bias)
    allowed = 2 * np.abs(reference - truth).max() + max(np.finfo(dtype).eps, 1e-14) * np.abs(truth).max()
    assert np.abs(result - truth).max() <= allowed
