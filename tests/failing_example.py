"""The failing example of a property as code that runs: by `python -c`, in a notebook, in a debugger."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CALL = re.compile(r"^(?:Failing test case|Falsifying example): (\w+)\(\n((?: {4}.*\n)*)\)", re.MULTILINE)
BEGIN = (
    "from math import inf, nan\n"
    "from numpy import array, float32, float64, int32, int64, uint8\n"
    "from numpy.random import default_rng\n"
)
"""Names that stand in what Hypothesis prints of arguments."""


def code(notes: Iterable[str], file: Path) -> str:
    """Return a program that makes the call that Hypothesis printed, "" where that cannot be written as one.

    Args:
        notes: the notes of the exception.
        file: where the test stands.
    """
    found = CALL.search("\n".join(notes))
    if found is None or not file.is_relative_to(ROOT):
        return ""
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    name, arguments = found.groups()
    arguments = re.sub(r"  # or any other generated value$", "", arguments, flags=re.MULTILINE)
    program = f"{BEGIN}from {module} import {name}\n\n{name}.hypothesis.inner_test(\n{arguments})\n"
    try:
        compile(program, module, "exec")
    except SyntaxError:  # an argument that is no number, text or generator, such as a fixture
        return ""
    return program
