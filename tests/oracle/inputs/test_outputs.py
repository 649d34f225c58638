"""What a kernel hands back, and what it may not hand back."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle.inputs.outputs import read_output
from refdiff.oracle.inputs.signature import adapt_kernel, takes_dout
from tests.layers.inputs import says as raises

X = np.asarray([[1.5, -2.0]], np.float32)


@pytest.mark.parametrize("dtype", [np.complex64, np.bool_, np.uint16, np.int64, ml_dtypes.int4], ids=str)
def test_other_types_are_refused_with_what_is_expected(dtype: Any) -> None:
    name = np.dtype(dtype).name
    with pytest.raises(ValueError, match=rf"^lse1: got dtype {name}, expected float64, .* \.view\(ml_dtypes.bfloat16"):
        read_output(X.astype(dtype), "lse1")


@pytest.mark.parametrize(
    ("x", "says"),
    [
        ((X, X), 'out is a tuple of 2 arrays: give a mapping, {"out": …, "dq": …}'),
        ([X, None], 'out is a list of 1 array: give a mapping, {"out": …, "dq": …}'),
        ((None, X), 'out is a tuple of 1 array: give a mapping, {"out": …, "dq": …}'),
        ([X], 'out is a list of 1 array: give the array alone, or a mapping, {"out": …, "dq": …}'),
    ],
)
def test_several_arrays_are_a_mapping(x: Any, says: str) -> None:
    with raises(TypeError, says):
        read_output(x)
    if isinstance(x, list) and len(x) == 1:
        with raises(TypeError, "lse1 is a list of 1 array: give the array alone"):
            read_output(x, "lse1")


WAYS: list[tuple[Any, Any]] = [
    (lambda spec, inputs: (spec, inputs), ("spec", "inputs")),
    (lambda inputs: inputs, "inputs"),
    (lambda spec, inputs, dout=None: (spec, inputs, dout), ("spec", "inputs", "dout")),
    (lambda inputs, *, dout: (inputs, dout), ("inputs", "dout")),
    (lambda spec, inputs=None: (spec, inputs), ("spec", "inputs")),
    (lambda *args: args, ("spec", "inputs")),
    (max, "spec"),  # it does not tell what it takes
]
"""Kernels, and what they get."""


@pytest.mark.parametrize(
    ("kernel", "expected"), [*WAYS, (partial(lambda spec, inputs: (spec, inputs), "own"), ("own", "inputs"))]
)
def test_ways_to_call_a_kernel(kernel: Any, expected: Any) -> None:
    assert adapt_kernel(kernel)("spec", "inputs", "dout") == expected
    assert takes_dout(kernel) == ("dout" in expected)


def test_other_arguments() -> None:
    def by_name(q, k, v, lam):
        pass

    def nothing():
        pass

    with raises(
        TypeError,
        "by_name(q, k, v, lam) must take (spec, inputs) or (inputs), and may also take dout=None for gradients; wrap "
        "a kernel of named arrays: lambda inputs: kernel(**inputs)",
    ):
        adapt_kernel(by_name)
    with raises(TypeError, "nothing() must take (spec, inputs) or (inputs), and may also take dout=None for gradients"):
        adapt_kernel(nothing)
