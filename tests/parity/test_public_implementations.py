"""What the page of public implementations says, run again for those that pip installs; it has a line for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.parity.public_implementations import HEAD, IMPLEMENTATIONS, Implementation, Result, judge, row

PAGE = Path(__file__).parents[2] / "notebooks" / "reference" / "guides" / "implementations.md"
PACKAGES = [one for one in IMPLEMENTATIONS if one.is_package]


@pytest.mark.parametrize("one", PACKAGES, ids=lambda one: f"{one.source} {one.name}")
def test_a_package_gives_the_verdict_of_the_page(one: Implementation) -> None:
    """In the narrowest of its types; the script judges it in all."""
    found = judge(replace(one, recipes=dict([*one.recipes.items()][-1:])))
    assert all(of > 0 for _, of in found.passed.values()), "cases were compared"
    assert found.verdict == one.expected, str(found)


def test_the_page_has_the_verdict_of_each() -> None:
    table = PAGE.read_text(encoding="utf-8").split("<!-- implementations -->")[1].split("<!-- end -->")[0].strip()
    lines = table.splitlines()
    assert lines[:2] == HEAD.splitlines()
    for one, line in zip(IMPLEMENTATIONS, lines[2:], strict=True):
        start, _, what, checked, _, verdict = (cell.strip() for cell in line.strip("|").split("|"))
        expected = row(one, Result({}, ""), "").strip("|").split("|")
        assert [start, what, checked] == [expected[n].strip() for n in (0, 2, 3)]
        assert verdict.strip("`") == one.expected, line
