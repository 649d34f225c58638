"""Run tests/layers in Pyodide, on NumPy's arrays."""

import os
import sys

os.chdir("/project")
sys.path.insert(0, "/project")
sys.dont_write_bytecode = True

import pytest  # noqa: E402

arguments = ["tests/layers", "-v", "--no-header", "--capture=sys", "-p", "no:cacheprovider"]
arguments += ["-k", "numpy and not read-only and not strict"]
code = pytest.main(arguments)
if code:
    raise SystemExit(f"pytest: {code!r}")
