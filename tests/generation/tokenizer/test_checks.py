"""What a call of the tokenizer must satisfy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.generation.tokenizer.checks import check_texts, check_truncation


def test_good_calls_pass() -> None:
    assert check_texts("text", ["", "東京", "\x00"]) == ["", "東京", "\x00"]
    assert check_texts("text", "a") == check_texts("text", ("a",)) == check_texts("text", np.array(["a"])) == ["a"]
    check_truncation("longest_first", np.int64(3), 0, 2)
    check_truncation("longest_first", 2, 0, 2)
    check_truncation("only_first", 9, 6, 2)


@pytest.mark.parametrize(
    ("strategy", "limit", "stride", "message"),
    [
        ("last", 5, 0, "truncation is 'last'"),
        ("only_first", 1, 0, "max_length is 1, but must be a number from 2"),
        ("only_first", True, 0, "max_length is True"),
        ("only_first", 5, 3, "stride is 3, but must be from 0 to 2"),
        ("only_first", 5, -1, "stride is -1"),
    ],
)
def test_wrong_truncation(strategy: str, limit: Any, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_truncation(strategy, limit, stride, 2)


def test_wrong_texts() -> None:
    with pytest.raises(TypeError, match="text_pair must be a string or a list of strings, but has int"):
        check_texts("text_pair", ["a", 3])
    with pytest.raises(ValueError, match=r"lone surrogate\) at position 2"):
        check_texts("text", ["ab\udcff"])
