"""A property that fails is printed as code that runs it again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.failing_example import code
from tests.layers.inputs import SEEDS

ROOT = Path(__file__).parents[1]


@settings(database=None)
@given(SEEDS, st.integers(0, 99))
def is_small(rng: np.random.Generator, n: int) -> None:
    assert n < 5 or rng.normal() > 9


def test_what_fails_is_printed_as_a_program() -> None:
    with pytest.raises(AssertionError) as failed:
        is_small()
    program = code(failed.value.__notes__, Path(__file__))
    assert "    n=5,\n" in program
    for value, status in ((5, 1), (4, 0)):
        command = [sys.executable, "-c", program.replace("n=5", f"n={value}")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert ("AssertionError" in done.stderr) == bool(status)
