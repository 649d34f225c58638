"""Every public bug is refused, its kernel without the bug passes, no bug gets a wrong name, and the page says so."""

from __future__ import annotations

import pytest

from tests.oracle.public_bugs.findings import HEAD, find, read_table, row, table
from tests.oracle.public_bugs.table import BUGS


@pytest.mark.parametrize("number", range(len(BUGS)), ids=[bug.thread for bug in BUGS])
def test_a_bug_is_refused_and_gets_no_wrong_name(number: int) -> None:
    bug, found = BUGS[number], find(number)
    assert (found.correct, found.verdict) == ("pass", "fail")
    assert row(number) in read_table().splitlines(), "run python -m tests.oracle.public_bugs.findings"
    assert not found.is_wrong(bug), found.names


def test_the_page_counts_its_rows() -> None:
    rows = read_table().partition(HEAD + "\n")[2].splitlines()
    assert read_table() == table(rows)
    assert len(rows) == len(BUGS)


def test_there_are_many_threads() -> None:
    assert len({bug.thread for bug in BUGS}) >= 40
    assert all(bug.thread.split("/")[2] in ("issues", "pull") for bug in BUGS)
