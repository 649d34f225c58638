"""That every test of a layer runs on every place, and that one which does not is told so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refdiff.arrays import namespace
from tests.layers.places import STRICT

pytestmark = pytest.mark.no_arrays

ROOT = Path(__file__).parents[2]
CONFTEST = "from tests.layers.conftest import _is_computed_there, pytest_generate_tests, xp\n"
TESTS = """
import numpy as np
import pytest
from refdiff import layers
from refdiff.layers import causal_mask, linear, rope_frequencies
from refdiff.layers.linear import linear as hidden

ONE, CALLS = np.ones((1, 1)), [hidden]

def test_by_name():
    assert type(linear(ONE, ONE)) is np.ndarray

def test_of_the_package():
    assert type(layers.linear(ONE, ONE)) is np.ndarray

def test_without_an_array_of_its_own():
    assert type(causal_mask(1, 2, xp=np)) is np.ndarray

def test_behind_another_name():
    CALLS[0](ONE, ONE)

def test_nothing():
    pass

def test_numbers():
    rope_frequencies({"rope_theta": 10.0}, 2, 8)

@pytest.mark.no_arrays
def test_numbers_marked():
    rope_frequencies({"rope_theta": 10.0}, 2, 8)

@pytest.mark.no_arrays
def test_arrays_marked():
    linear(ONE, ONE)
"""
SAYS = {
    "test_by_name": "", "test_of_the_package": "", "test_without_an_array_of_its_own": "",
    "test_behind_another_name": "gave arrays to no layer", "test_nothing": "gave arrays to no layer",
    "test_numbers": "gave arrays to no layer", "test_numbers_marked": "",
    "test_arrays_marked": "gives arrays to linear",
}  # fmt: skip


def test_a_length_below_minus_one_is_refused() -> None:
    x = STRICT.put(np.ones((2, 3)))
    assert namespace(x).reshape(x, (-1,)).shape == (6,)
    with pytest.raises(ValueError, match="reshape: no length is -2"):
        namespace(x).reshape(x, (2, -2))


def test_a_test_that_is_not_on_every_place_fails(tmp_path: Path, outside: dict[str, str]) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    options = ["-q", "--tb=line", "-rA", "-p", "no:cacheprovider", "-o", "addopts=", "-c", str(ROOT / "setup.cfg")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(ROOT), str(tmp_path)],
        cwd=ROOT, env=outside | {"COLUMNS": "300"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    for name, message in SAYS.items():
        errors = [line for line in lines if line.startswith("ERROR ") and f"::{name}[" in line]
        passed = [line for line in lines if line.startswith("PASSED ") and f"::{name}[" in line]
        places = 1 if "marked" in name else 3
        assert len(passed) >= places, done.stdout + done.stderr
        assert len(passed) == 1 or places == 3
        assert len(errors) == (len(passed) if message else 0), done.stdout
        assert all(message in line for line in errors)
