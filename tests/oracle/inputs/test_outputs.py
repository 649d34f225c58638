"""What a kernel hands back, and what it may not hand back."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle.inputs.outputs import called, output, output_alone, takes_dout
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
        ((X, X), 'out is a tuple of 2 arrays: give a mapping, {"out": …, "dq": …}'),
        ((X, X[0]), 'out is a tuple of 2 arrays: give a mapping, {"out": …, "dq": …}'),
        ([X, None], 'out is a list of 1 array: give a mapping, {"out": …, "dq": …}'),
        ((None, X), 'out is a tuple of 1 array: give a mapping, {"out": …, "dq": …}'),
        ([X], 'out is a list of 1 array: give the array alone, or a mapping, {"out": …, "dq": …}'),
        ((X, (X, X)), 'out is a tuple of 2 arrays: give a mapping, {"out": …, "dq": …}'),
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

    with raises(TypeError, 'out is a list of 1 array: give the array alone, or a mapping, {"out": …, "dq": …}'):
        output([Tensor()])
    with raises(TypeError, "lse1 is a list of 1 array: give the array alone"):
        output([Tensor()], "lse1")


def _of_two(spec: Any, inputs: Any) -> Any:
    return spec, inputs


def _of_one(inputs: Any) -> Any:
    return inputs


def _of_one_with_a_choice(x: Any, scale: float = 1.0) -> Any:
    return x, scale


def _of_two_with_gradients(spec: Any, inputs: Any, dout: Any = None) -> Any:
    return spec, inputs, dout


def _of_one_with_gradients(inputs: Any, *, dout: Any) -> Any:
    return inputs, dout


def _of_any(*args: Any, **options: Any) -> Any:
    return args, options


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (_of_two, ("spec", "inputs")),
        (_of_one, "inputs"),
        (_of_one_with_a_choice, ("inputs", 1.0)),
        (_of_two_with_gradients, ("spec", "inputs", "dout")),
        (_of_one_with_gradients, ("inputs", "dout")),
        (_of_any, (("spec", "inputs"), {})),
        (max, "spec"),  # it does not tell what it takes
        (partial(_of_two, "own"), ("own", "inputs")),
        (lambda spec, inputs=None: (spec, inputs), ("spec", "inputs")),
    ],
)
def test_ways_to_call_a_kernel(kernel: Any, expected: Any) -> None:
    assert called(kernel)("spec", "inputs", "dout") == expected
    assert takes_dout(kernel) == ("dout" in expected)


def test_other_arguments() -> None:
    def by_name(q, k, v, lam):
        pass

    def nothing():
        pass

    with raises(
        TypeError,
        "by_name(q, k, v, lam) must take (spec, inputs) or (inputs), and may have dout=None beside for gradients; call "
        "one of arrays by name in such a function, as kernel(**inputs)",
    ):
        called(by_name)
    with raises(
        TypeError, "nothing() must take (spec, inputs) or (inputs), and may have dout=None beside for gradients"
    ):
        called(nothing)


def test_nothing_beside_the_output_is_left_out() -> None:
    """`(out, None)` is what an attention module of transformers returns without its weights."""
    assert output((X, None)) is X
    assert output((X, None, None)) is X
    assert output_alone((X, None), "a test") is X
