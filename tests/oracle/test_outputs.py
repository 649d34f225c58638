"""What a kernel hands back, and what it may not hand back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle.outputs import output, output_alone

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
