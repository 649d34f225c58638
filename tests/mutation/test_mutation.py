"""The tester tested: which mutants there are, and that one is told from another."""

from __future__ import annotations

from pathlib import Path

from tests.mutation.mutants import mutants_of

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
