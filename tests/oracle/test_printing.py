"""What is printed of many arrays, and text in 80 columns."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle.array_summary import array_summary
from refdiff.oracle.text_wrap import wrap_text


def test_names_shapes_and_types() -> None:
    x = {"q": np.zeros((2, 3), ml_dtypes.bfloat16), "lambda_full": np.asarray(0.5)}
    assert array_summary(x) == "q (2, 3) bfloat16, lambda_full () float64"
    assert (
        array_summary({"x": SimpleNamespace(shape=[2], dtype="torch.float16"), "y": None})
        == "x (2,) float16, y NoneType"
    )
    assert array_summary({}) == ""


def test_long_lines_are_broken_between_words_or_columns() -> None:
    assert wrap_text("short  line\n\n") == "short  line\n"
    assert wrap_text("  one two three four five", 16) == "  one two three\n      four five"
    assert (
        wrap_text("  out  pass  row 1/3  bulk 1/2  slope 1/2", 22)
        == "  out  pass  row 1/3\n      bulk 1/2\n      slope 1/2"
    )
    assert wrap_text("  see https://host/a-very-long/address", 20) == "  see\n      https://host/a-very-long/address"


@pytest.mark.parametrize("width", range(26, 46))
def test_numbers_are_not_broken(width: int) -> None:
    """And a remark after a gap does not make columns of a line."""
    text = "  at (b 0, head 3, t 95) it is 0.1, the truth 0.2 ± 0.01; it is wrong there  (fits, residual 0.7)"
    made = wrap_text(text, width)
    assert max(map(len, made.splitlines())) <= width
    for kept in ("(b 0, head 3, t 95)", "0.2 ± 0.01", "(fits, residual 0.7)"):
        assert kept in made
    assert made.split() == text.split()
