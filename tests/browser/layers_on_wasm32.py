"""Run tests/layers in Pyodide, on NumPy's arrays, without the one test that starts a process."""

import os
import sys

os.chdir("/project")
sys.path.insert(0, "/project")
sys.dont_write_bytecode = True

import pytest  # noqa: E402

PROCESS = "tests/layers/test_everywhere.py::test_a_test_that_is_not_on_every_place_fails"
arguments = ["tests/layers", "-v", "--no-header", "--capture=sys", "-p", "no:cacheprovider", f"--deselect={PROCESS}"]
arguments += ["-k", "numpy and not read-only and not strict"]
code = pytest.main(arguments)
if code:
    raise SystemExit(f"pytest: {code!r}")
