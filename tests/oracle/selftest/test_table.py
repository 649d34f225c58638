"""Counts, their sums, and when the tester itself passes."""

from __future__ import annotations

import json

from refdiff.oracle.selftest.table import Count, Table


def _table(**count: int) -> Table:
    table = Table()
    table.counts["float32", "natural", "forward", "rows"].add(Count(**count))
    return table


def test_holds_from_99_percent_without_a_false_alarm() -> None:
    assert _table(mutants=200, visible=100, killed=110, killed_visible=99, legal=5).holds
    assert not _table(mutants=200, visible=100, killed=110, killed_visible=98, legal=5).holds
    assert not _table(mutants=200, visible=100, killed=110, killed_visible=100, legal=5, refused=1).holds
    assert not _table(legal=5).holds, "nothing was visible"


def test_sums_and_text() -> None:
    table = _table(mutants=4, visible=2, killed=3, killed_visible=2, legal=5, undecided=1)
    other = _table(mutants=4, visible=2, killed=1, killed_visible=1, legal=5, refused=1)
    other.counts["float16", "cancel", "backward", "flex mean"].add(Count(mutants=3))
    other.survivors["float32", "forward", "one_nan"] += 1
    other.refusals.append("because")
    table.add(other)
    assert vars(table.total(rule="rows")) == {
        "mutants": 8,
        "visible": 4,
        "killed": 4,
        "killed_visible": 3,
        "legal": 10,
        "refused": 1,
        "undecided": 1,
    }
    assert table.total(recipe="float16").mutants == 3
    text = str(table)
    assert "75.0 % of 4" in text
    assert "50.0 % of 8" in text
    assert "1/10 +1?" in text
    assert "1 x one_nan (float32, forward)" in text
    assert text.endswith("because")
    assert json.loads(json.dumps(table.to_dict()))["survivors"][0]["mutant"] == "one_nan"
