"""Rows of ids, padded and as arrays."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.generation.tokenizer.encoded import batch, pad_rows, to_lists


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
