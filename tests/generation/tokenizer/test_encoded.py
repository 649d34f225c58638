"""What a call of the tokenizer must satisfy; rows of ids, padded and as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.generation.tokenizer.encoded import batch, check_texts, check_truncation, pad_rows, to_lists


def test_pad_rows() -> None:
    assert pad_rows([[1], [2, 3]], 3, 9, "left") == [[9, 9, 1], [9, 2, 3]]
    assert pad_rows([[1], [2, 3]], 1, 9, "right") == [[1], [2, 3]]
    with pytest.raises(ValueError, match='"left" or "right"'):
        pad_rows([[1]], 2, 9, "both")


def test_batch_of_empty_rows_keeps_its_shape() -> None:
    assert batch({"input_ids": [[], []]}, False, "np")["input_ids"].shape == (2, 0)
    assert batch({"input_ids": [[]]}, True, None) == {"input_ids": []}


def test_to_lists() -> None:
    assert to_lists(3) == [3]
    assert to_lists(np.array(3)) == [3]
    assert to_lists([np.int64(1), [2, (3,)]]) == [1, [2, [3]]]


def test_good_calls_pass() -> None:
    assert check_texts("text", ["", "東京", "\x00"]) == ["", "東京", "\x00"]
    assert check_texts("text", "a") == check_texts("text", ("a",)) == check_texts("text", np.array(["a"])) == ["a"]
    check_truncation("longest_first", np.int64(3), 0, 2)
    check_truncation("longest_first", 2, 0, 2)
    check_truncation("only_first", 9, 6, 2)


@pytest.mark.parametrize(
    ("strategy", "limit", "stride", "message"),
    [
        ("last", 5, 0, "truncation: got 'last'"),
        ("only_first", 1, 0, "max_length: got 1, expected a number from 2"),
        ("only_first", True, 0, "max_length: got True"),
        ("only_first", 5, 3, "stride: got 3, expected 0 to 2"),
        ("only_first", 5, -1, "stride: got -1"),
    ],
)
def test_wrong_truncation(strategy: str, limit: Any, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_truncation(strategy, limit, stride, 2)


def test_wrong_texts() -> None:
    with pytest.raises(TypeError, match="text_pair: got int, expected a string or a list of strings"):
        check_texts("text_pair", ["a", 3])
    with pytest.raises(ValueError, match=r"lone surrogate\) at position 2"):
        check_texts("text", ["ab\udcff"])
