"""What a kernel hands back, and what it may not hand back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle.outputs import output, output_alone
from tests.layers.inputs import says as raises

X = np.asarray([[1.5, -2.0]], np.float32)


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn], ids=str
)
def test_floats_come_as_they_are(dtype: Any) -> None:
    found = output(X.astype(dtype))
    assert found.dtype == dtype
    assert np.array_equal(found.astype(np.float32), X)


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [
        (np.complex64, "attention is real; if its imaginary part is 0, give the real part"),
        (np.bool_, "is it a comparison"),
        (np.uint16, r"the bits of bfloat16, .view\(ml_dtypes.bfloat16\)"),
        (np.int64, "whole numbers have lost what is to be judged"),
        (ml_dtypes.int4, "whole numbers have lost"),
    ],
    ids=str,
)
def test_other_types_are_refused_with_what_is_expected(dtype: Any, hint: str) -> None:
    name = np.dtype(dtype).name
    with pytest.raises(ValueError, match=f"^lse1 has dtype {name}, but must be float64, float32, .* float: .*{hint}"):
        output(X.astype(dtype), "lse1")


def test_the_output_of_several() -> None:
    assert output_alone(X, "a test") is X
    assert output_alone({"out": X, "lse1": None}, "a test") is X
    with pytest.raises(ValueError, match="the outputs lack 'out', which a test is about: they hold lse1, dq; give out"):
        output_alone({"lse1": X, "dq": X}, "a test")
    with pytest.raises(ValueError, match="they hold nothing"):
        output_alone({}, "a test")


@pytest.mark.parametrize(
    ("x", "says"),
    [
        ((X, X), 'out is a tuple of 2 arrays: give a mapping, {"out": …, "lse1": …}'),
        ((X, X[0]), 'out is a tuple of 2 arrays: give a mapping, {"out": …, "lse1": …}'),
        ((X, None), 'out is a tuple of 1 array: give a mapping, {"out": …, "lse1": …}'),
        ([X], 'out is a list of 1 array: give the array alone, or a mapping, {"out": …, "lse1": …}'),
        ((X, (X, X)), 'out is a tuple of 2 arrays: give a mapping, {"out": …, "lse1": …}'),
    ],
)
def test_several_arrays_are_a_mapping(x: Any, says: str) -> None:
    with raises(TypeError, says):
        output(x)
    with raises(TypeError, says):
        output_alone({"out": x}, "a test")


def test_a_tensor_that_numpy_may_not_read_is_not_touched() -> None:
    """As one of torch that requires a gradient, in a list."""

    class Tensor:
        shape = (2, 3)

        def __array__(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    with raises(TypeError, 'out is a list of 1 array: give the array alone, or a mapping, {"out": …, "lse1": …}'):
        output([Tensor()])
    with raises(TypeError, "lse1 is a list of 1 array: give the array alone"):
        output([Tensor()], "lse1")


def test_lists_of_numbers_are_arrays() -> None:
    assert np.array_equal(output(X.tolist()), X)
    assert np.array_equal(output(tuple(X[0])), X[0])
    assert np.array_equal(output([[np.float32(1.5), -2.0]]), X)
