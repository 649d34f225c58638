"""What is said about options that are not there."""

from __future__ import annotations

import re

import pytest

from refdiff.generation import unknown_option as module
from refdiff.generation.options import NAMES
from refdiff.generation.unknown_option import unknown_option


@pytest.mark.parametrize(
    ("name", "near"),
    [("max_tokens", "max_new_tokens"), ("topp", "top_p"), ("temprature", "temperature"), ("do_sampling", "do_sample")],
)
def test_a_misspelled_one_names_the_nearest(name: str, near: str) -> None:
    assert str(unknown_option(name, NAMES)) == f"generate() got an unknown option {name!r}: did you mean {near!r}?"


@pytest.mark.parametrize("name", ["zzz", "verbose", "config", "seeds_of_each_row", "device", "callback"])
def test_one_like_no_other_gets_no_suggestion(name: str) -> None:
    message = str(unknown_option(name, NAMES))
    assert message == f"generate() got an unknown option {name!r}; the known ones are {', '.join(NAMES)}"


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("use_cache", "; the cache is always used"),
        (
            "generation_config",
            "; give its entries as options, or put generation_config.json into the checkpoint's folder",
        ),
        ("num_beam_groups", ""),
        ("min_length", "; min_new_tokens counts the new tokens alone"),
    ],
)
def test_one_that_is_left_out_on_purpose_says_so(name: str, instead: str) -> None:
    expected = f"generate() got {name!r}, an option of transformers that refdiff does not have{instead}"
    assert str(unknown_option(name, NAMES)) == expected


def test_what_is_left_out_is_not_there_and_the_advice_names_what_is() -> None:
    assert not set(module._LEFT_OUT) & set(NAMES)
    for advice in module._LEFT_OUT.values():
        named = re.findall(r"\b[a-z]+_[a-z_]+\b", advice)
        assert set(named) <= {*NAMES, "generation_config"}
