"""Hypothesis's profiles: the same examples each time, but for nightly's, and what fails printed as code that runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, reproduce_failure, settings
from hypothesis import strategies as st

from tests.conftest import pytest_runtest_makereport
from tests.failing_example import code
from tests.layers.inputs import SEEDS

ROOT = Path(__file__).parents[1]
TRIED: list[int] = []


def new_property() -> Callable[[], None]:
    @given(SEEDS, st.integers(0, 99))
    def is_small(rng: np.random.Generator, n: int) -> None:
        TRIED.append(n)
        assert n < 5 or rng.normal() > 9

    return is_small


is_small = new_property()


def failing(profile: str) -> tuple[AssertionError, list[int]]:
    """Run a property that fails from 5 on; gives the exception, with what Hypothesis says, and the numbers tried."""
    TRIED.clear()
    with pytest.raises(AssertionError) as failed:
        settings(settings.get_profile(profile), database=None)(new_property())()
    return failed.value, list(TRIED)


@pytest.mark.parametrize("profile", ["dev", "mutation"])
def test_the_same_examples_each_time(profile: str) -> None:
    (error, tried), (again, tried_again) = failing(profile), failing(profile)
    assert tried == tried_again
    assert error.__notes__ == again.__notes__


def test_nightly_draws_others_each_time() -> None:
    assert failing("nightly")[1] != failing("nightly")[1]


def test_more_and_more_examples() -> None:
    numbers = [settings.get_profile(name).max_examples for name in ("dev", "ci", "nightly")]
    assert numbers == sorted(set(numbers))
    guide = (ROOT / "notebooks" / "reference" / "guides" / "testing.md").read_text(encoding="utf-8")
    assert [str(n) in guide for n in numbers] == [True] * 3


@pytest.mark.parametrize("profile", ["dev", "nightly"])
def test_what_fails_is_printed_as_a_program(profile: str) -> None:
    error, _ = failing(profile)
    program = code(error.__notes__, Path(__file__))
    assert "    n=5,\n" in program
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("AssertionError"), done.stderr
    done = subprocess.run([sys.executable, "-c", program.replace("n=5", "n=4")], cwd=ROOT, check=False)
    assert done.returncode == 0
    line = re.search(r"@(reproduce_failure\(.*\)) as a decorator", "\n".join(error.__notes__))
    assert line is not None
    TRIED.clear()
    with pytest.raises(AssertionError):
        eval(line[1], {"reproduce_failure": reproduce_failure})(new_property())()
    assert set(TRIED) == {5}


def test_the_program_is_in_the_report() -> None:
    with pytest.raises(AssertionError) as failed:
        is_small()
    report = SimpleNamespace(sections=[])
    made = pytest_runtest_makereport(SimpleNamespace(path=Path(__file__)), SimpleNamespace(excinfo=failed))  # type: ignore[arg-type]
    next(made)
    with pytest.raises(StopIteration) as stopped:
        made.send(report)
    assert stopped.value.value is report
    ((title, program),) = report.sections
    assert title.startswith("the failing example")
    assert "from tests.test_profiles import is_small\n" in program


def test_what_is_no_program_is_not_printed() -> None:
    notes = ["Failing test case: is_small(\n    place=<a place>,\n)"]
    assert code(notes, Path(__file__)) == ""
    assert code(["Failing test case: is_small(\n    n=5,\n)"], Path("/elsewhere/test_x.py")) == ""
    assert code([], Path(__file__)) == ""
