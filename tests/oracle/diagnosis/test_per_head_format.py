"""Numbers by head in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle.diagnosis.parameter_fit import LISTED, in_words, is_one, short_list, spec_value_format


def test_one_number_or_several() -> None:
    assert is_one(np.array([0.5, 0.505]))
    assert in_words(np.array([0.5, 0.505])) == "0.5025 in every head"
    assert not is_one(np.array([0.5, 0.52]))
    assert in_words(np.array([0.5, -0.5])) == "by head 0.5, -0.5"


def test_of_many_heads_the_first_are_listed() -> None:
    assert short_list(np.arange(3.0)) == "0, 1, 2"
    assert short_list(np.ones(LISTED)).count("1") == LISTED
    assert short_list(np.ones(LISTED + 1)) == "1, " * LISTED + "…"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (0.36, "0.36"),
        (np.full((1, 3, 1, 1), 0.36), "0.36"),
        (np.reshape([0.3, 0.4, 0.5], (1, 3, 1, 1)), "by head 0.3, 0.4, 0.5"),
        (np.ones((1, 3, 5, 1)), "one for each token"),
        (np.ones((1, 1, 3, 1)), "one for each token"),
    ],
)
def test_what_a_spec_has(values: Any, words: str) -> None:
    assert spec_value_format(values, 3) == words
