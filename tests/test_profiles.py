"""Hypothesis's profiles: the same examples each time, but for nightly's, and what fails printed as code that runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reproduce_failure, settings
from hypothesis import strategies as st

from tests.layers.inputs import SEEDS

ROOT = Path(__file__).parents[1]


def failing(profile: str) -> tuple[list[str], list[int], list[object]]:
    """Run a property that fails from 5 on; gives what Hypothesis says, the numbers tried, and the test."""
    tried = []

    @settings(settings.get_profile(profile), database=None)
    @given(SEEDS, st.integers(0, 99))
    def is_small(rng: np.random.Generator, n: int) -> None:
        tried.append(n)
        assert n < 5 or rng.normal() > 9

    with pytest.raises(AssertionError) as failed:
        is_small()
    return failed.value.__notes__, tried, [is_small]


@pytest.mark.parametrize("profile", ["dev", "ci", "mutation"])
def test_the_same_examples_each_time(profile: str) -> None:
    (notes, tried, _), (again_notes, again_tried, _) = failing(profile), failing(profile)
    assert tried == again_tried
    assert notes == again_notes


def test_nightly_draws_others_each_time() -> None:
    assert failing("nightly")[1] != failing("nightly")[1]


def test_more_and_more_examples() -> None:
    numbers = [settings.get_profile(name).max_examples for name in ("dev", "ci", "nightly")]
    assert numbers == sorted(set(numbers))
    assert [str(n) in (ROOT / "README.md").read_text(encoding="utf-8") for n in numbers] == [True] * 3


@pytest.mark.parametrize("profile", ["dev", "ci", "nightly"])
def test_what_fails_is_printed_as_code_that_runs(profile: str) -> None:
    notes, tried, (is_small,) = failing(profile)
    said = "\n".join(notes)
    inner = is_small.hypothesis.inner_test  # type: ignore[attr-defined]
    call = re.search(r"is_small\(\n.*?\n\)", said, re.DOTALL)
    assert call is not None, said
    assert "n=5" in call[0]
    with pytest.raises(AssertionError):
        exec(call[0], {"is_small": inner, "default_rng": np.random.default_rng})
    line = re.search(r"@(reproduce_failure\(.*\)) as a decorator", said)
    assert line is not None, said
    tried.clear()
    with pytest.raises(AssertionError):
        eval(line[1], {"reproduce_failure": reproduce_failure})(is_small)()
    assert set(tried) == {5}
