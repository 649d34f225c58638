"""Masks in words: what is a box, what repeats, and what has no shape."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.diagnosis.region_format import boxes, indices, repeats, worded

NAMES = ("sequence", "head", "token")


def mask(*places: tuple[object, ...]) -> np.ndarray:
    made = np.zeros((2, 6, 64), dtype=bool)
    for place in places:
        made[place] = True  # type: ignore[index]
    return made


ALL = np.ones((2, 6, 64), dtype=bool)
EVERY = slice(None)


@pytest.mark.parametrize(
    ("marked", "words"),
    [
        (mask((EVERY, EVERY, EVERY)), [""]),
        (mask((1, 3, slice(32, 64))), ["tokens 32 to 63 of head 3 of sequence 1"]),
        (mask((1, EVERY, EVERY)), ["sequence 1"]),
        (mask((EVERY, [0, 4], 5)), ["token 5 of heads 0 and 4"]),
        (mask((EVERY, [1, 3, 5], EVERY)), ["heads 1, 3 and 5"]),
        (mask((EVERY, EVERY, slice(31, None, 32))), ["tokens i with i mod 32 = 31"]),
        (mask((0, 0, 3), (1, 2, slice(8, 16))), ["token 3 of head 0 of sequence 0",
          "tokens 8 to 15 of head 2 of sequence 1"]),
        (mask((0, 0, 3), (0, 1, 9), (1, 2, 5), (1, 5, 60)), []),
    ],
)  # fmt: skip
def test_boxes_in_words(marked: np.ndarray, words: list[str]) -> None:
    assert [worded(box, ALL, NAMES) for box in boxes(marked, ALL)] == words


def test_nothing_is_no_box() -> None:
    assert boxes(mask(), ALL) == []


def test_a_box_may_have_a_hole() -> None:
    marked = mask((1, 3, slice(32, 64)))
    marked[1, 3, 40] = False
    (box,) = boxes(marked, ALL)
    assert worded(box, ALL, NAMES) == "most tokens from 32 to 63 of head 3 of sequence 1"
    marked[1, 4, 32:64] = True
    (box,) = boxes(marked, ALL)
    assert worded(box, ALL, NAMES) == "tokens 32 to 63 of heads 3 to 4 of sequence 1"


def test_all_of_a_shorter_sequence_is_that_sequence() -> None:
    counted = ALL.copy()
    counted[1, :, 20:] = False
    marked = mask((1, EVERY, slice(0, 20)))
    (box,) = boxes(marked, counted)
    assert worded(box, counted, NAMES) == "sequence 1"


def test_random_rows_have_no_shape() -> None:
    marked = np.random.default_rng(0).random(ALL.shape) < 0.2
    assert boxes(marked, ALL) == []


def test_without_a_pattern_there_are_no_words() -> None:
    some = np.asarray([1, 5, 6, 20, 33, 50])
    assert indices("token", some, np.arange(64)) is None
    (box,) = boxes(mask((0, 0, some)), ALL)
    assert worded(box, ALL, NAMES) is None


def test_what_repeats() -> None:
    of = np.arange(70)
    assert repeats(of[31::32], of) == (32, 31, 31)
    assert repeats(of[of % 16 >= 12], of) == (16, 12, 15)
    assert repeats(of[of % 7 == 2], of) == (7, 2, 2)
    assert indices("token", of[of % 16 >= 12], of) == "tokens i with i mod 16 from 12 to 15"
    assert repeats(np.asarray([5, 40]), of) is None
    assert repeats(np.asarray([31]), of) is None
    assert repeats(np.asarray([0, 32]), of) is None  # 64 is not among them
