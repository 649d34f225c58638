"""What is printed of many arrays."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np

from refdiff.oracle.array_summary import SHOWN, array_summary


def test_names_shapes_and_types() -> None:
    x = {"q": np.zeros((2, 3), ml_dtypes.bfloat16), "lambda_full": np.asarray(0.5)}
    assert array_summary(x) == "q (2, 3) bfloat16, lambda_full () float64"
    assert (
        array_summary({"x": SimpleNamespace(shape=[2], dtype="torch.float16"), "y": None})
        == "x (2,) float16, y NoneType"
    )
    assert array_summary({}) == ""


def test_the_first_and_the_last_of_many() -> None:
    text = array_summary({f"x{i}": np.zeros(i) for i in range(200)})
    assert text.startswith("x0 (0,) float64, x1 (1,)")
    assert text.endswith("x6 (6,) float64, … (200), x199 (199,) float64")
    assert "…" not in array_summary({f"x{i}": np.zeros(i) for i in range(SHOWN)})
