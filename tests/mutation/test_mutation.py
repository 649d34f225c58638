"""The tester tested: which mutants there are, and that one is told from another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.mutants import mutants_of

ROOT = Path(__file__).parents[2]
SOURCE = '''"""What it is for: 1 + 1."""
from math import pi

__all__ = ["area"]
LIMIT: int = 3


def area(x: int, y: int = 0, *, round: bool = True) -> "list[int]":
    """x + y."""
    if x < LIMIT and y:
        raise ValueError(f"x is {x + 1}")
    return clip(x, y, at=-x)[1:x]
'''
EXPECTED = {
    ("statement", "pass"),
    ("constant", "LIMIT: int = 4"),
    ("constant", 'def area(x: int, y: int = 1, *, round: bool = True) -> "list[int]":'),
    ("constant", 'def area(x: int, y: int = 0, *, round: bool = False) -> "list[int]":'),
    ("condition", "if (not (x < LIMIT and y)):"),
    ("operator", "if (x < LIMIT or y):"),
    ("comparison", "if (x <= LIMIT) and y:"),
    ("argument", "return (clip(y, x, at=-x))[1:x]"),
    ("argument", "return (clip(x, at=-x))[1:x]"),
    ("argument", "return (clip(x, y))[1:x]"),
    ("operator", "return clip(x, y, at=(x))[1:x]"),
    ("constant", "return clip(x, y, at=-x)[2:x]"),
    ("slice", "return (clip(x, y, at=-x)[x:1])"),
    ("slice", "return (clip(x, y, at=-x)[1:])"),
    ("slice", "return (clip(x, y, at=-x)[:x])"),
}


def test_every_kind_of_change_and_nothing_of_what_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "area.py"
    file.write_text(SOURCE, encoding="utf-8")
    found = mutants_of(file, tmp_path)
    assert {(m.kind, m.after) for m in found} == EXPECTED
    assert [m.line for m in found if m.after == "pass"] == [5, 11, 12]
    assert len({m.source for m in found}) == len(found) == len(EXPECTED) + 2


HALF = "def half(x: float) -> float:\n    return abs(x) * 0.5 if x >= 0 else -abs(x) * 0.5\n"
TEST = """
import time
import pytest
from refdiff.layers.half import half

def test_half() -> None:
    assert [half(x) for x in (-3.0, 0.5)] == [-1.5, 0.25]
"""
ENTRY = """
[[mutant]]
file = "refdiff/layers/half.py"
function = "half"
before = "return abs(x) * 0.5 if x >= 0 else -abs(x) * 0.5"
after = "return abs(x) * 0.5 if {after} else -abs(x) * 0.5"
reason = "half of 0 is 0"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("listed", "code", "says"),
    [
        ([], 1, "score 88.9"),
        (["(x > 0)"], 0, "8      1        0 100.0%"),
        (["(x > 0)", "(x < 0)"], 1, "no such mutant"),
        (["(x > 0)", "(not (x >= 0))"], 1, "listed, but killed by tests/layers/test_half.py::test_half"),
    ],
)
def test_surviving_mutants_must_be_listed_and_listed_mutants_survive(
    tmp_path: Path, outside: dict[str, str], listed: list[str], code: int, says: str
) -> None:
    for name, text in {
        "refdiff/__init__.py": "",  # else the project's own refdiff, a package, comes before this one
        "refdiff/layers/__init__.py": "",
        "refdiff/layers/half.py": f"{HALF}\n\ndef untested(x: float) -> float:\n    return x + 1\n",
        "tests/layers/test_half.py": TEST,
        **{f"tests/layers/test_{n}.py": "def test_nothing() -> None:\n    pass\n" for n in ("vjp", "init", "errors")},
        "setup.cfg": "[tool:pytest]\npythonpath = .\naddopts = --import-mode=importlib\n",
        "equivalent.toml": "".join(ENTRY.format(after=after) for after in listed),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    args = ["--root", tmp_path, "--equivalent", tmp_path / "equivalent.toml"]
    args += ["--path", "refdiff/layers", "--function", "half"]
    command = [sys.executable, "-m", "tests.mutation", *args]
    done = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=False)
    assert says in done.stdout, done.stdout + done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    assert ("survived: refdiff/layers/half.py" in done.stdout) == ("(x > 0)" not in listed)
