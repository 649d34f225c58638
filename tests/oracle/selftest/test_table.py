"""Counts, their sums, when the tester itself passes, and the page: numbers where they belong."""

from __future__ import annotations

import json

from tests.oracle.selftest.page import page
from tests.oracle.selftest.table import Count, Table, table_from_dict


def _table(**count: int) -> Table:
    table = Table()
    table.counts["float32", "natural", "forward", "rows"].add(Count(**count))
    return table


def test_holds_from_98_percent_without_a_false_alarm() -> None:
    enough = {"mutants": 200, "killed": 110, "identifiable": 100, "own": 5}
    assert _table(**enough, killed_identifiable=98).holds
    assert not _table(**enough, killed_identifiable=97).holds
    assert not _table(**enough, killed_identifiable=100, own_refused=1).holds
    assert not _table(**enough, killed_identifiable=100, real=5, real_refused=1).holds
    assert not _table(own=5).holds, "nothing was identifiable"


def test_twenty_seeds_need_99_2_percent() -> None:
    for killed, seeds, holds in ((992, 20, True), (991, 20, False), (991, 19, True)):
        table = _table(mutants=1000, killed=killed, identifiable=1000, killed_identifiable=killed)
        table.seeds["forward", "local", "one_nan"] |= set(range(seeds))
        assert table.holds is holds, (killed, seeds)


def _two() -> Table:
    table = _table(mutants=4, identifiable=2, killed=3, killed_identifiable=2, own=5, own_undecided=1)
    other = _table(mutants=4, identifiable=2, killed=1, killed_identifiable=1, own=5, own_refused=1)
    other.counts["float16", "cancellation", "backward", "flex mean"].add(Count(mutants=3))
    other.by_name["forward", "local", "one_nan"].add(Count(mutants=2))
    other.seeds["forward", "local", "one_nan"] |= {4, 3}
    other.survivors["float32", "forward", "one_nan"] += 1
    other.refusals.append("because")
    other.errors["float16", "cancellation", "lse", "torch"].append(1.5)
    table.add(other)
    return table


def test_sums_and_text() -> None:
    table = _two()
    assert table.total(rule="rows") == Count(
        mutants=8, identifiable=4, killed=4, killed_identifiable=3, own=10, own_refused=1, own_undecided=1
    )
    assert table.total(recipe="float16").mutants == 3
    assert table.rules == ("rows", "flex mean")
    text = str(table)
    assert "75.0 % of 4" in text
    assert " 50.0  " in text
    assert max(map(len, text.splitlines())) <= 80
    assert "1/10 +1?" in text
    assert "1 x one_nan (float32, forward)" in text
    assert "\nbecause\n" in text
    assert text.endswith(
        "\nnot passed, by the rule `rows`\n  killed: 75.0 % of 4 identifiable mutants; expected 98 % or more\n"
        "  refused: 1 of 10 correct kernels; expected 0"
    )


def test_json_and_back() -> None:
    table = _two()
    assert table_from_dict(json.loads(json.dumps(table.to_dict()))) == table


def _one() -> Table:
    table = Table()
    table.counts["float32", "natural", "forward", "rows"] = Count(
        mutants=300, killed=250, identifiable=240, killed_identifiable=239, plain=260, killed_plain=250,
        held_back=1, own=50, own_undecided=7, real=20,
    )  # fmt: skip
    table.counts["float32", "natural", "forward", "flex mean"] = Count(
        mutants=300,
        killed=200,
        identifiable=240,
        killed_identifiable=180,
        own=50,
        own_refused=3,
        real=20,
        real_refused=4,
    )
    table.by_name["forward", "scale", "scores_not_scaled"] = Count(mutants=16, identifiable=16, killed_identifiable=16)
    table.by_name["forward", "local", "one_nan"] = Count(mutants=16)
    table.seeds["forward", "scale", "scores_not_scaled"] = {1, 2}
    table.errors["float32", "natural", "forward", "torch"] = [1.0, 3.0, 1.5]
    table.survivors["float32", "forward", "element_times_1_01"] = 1
    return table


def test_every_number_in_its_cell() -> None:
    text = page(_one(), range(7, 9), "a.b:KERNELS")
    assert "\n    refdiff check --selftest --seeds 2 --kernels a.b:KERNELS --markdown\n" in text
    assert "Every single deviation, and 1 mistakes in one place; seeds 7, 8," in text
    lines = text.split("\n")
    head = next(line for line in lines if line.startswith("| rule | identifiable"))
    assert head.endswith("| real kernels refused | inconclusive |")
    assert "| recipe | profile | own | real | inconclusive | rows | flex mean |" in lines
    assert "decided" not in text, "one word for one verdict"
    assert "| rows | 239 of 240 (99.6 %) | 83.3 % of 300 | 0 of 50 | 0 of 20 | 7 |" in lines
    assert "| flex mean | 180 of 240 (75.0 %) | 66.7 % of 300 | 3 of 50 (6.0 %) | 4 of 20 (20.0 %) | - |" in lines
    assert "| float32 | natural | 240 | 99.6 | 75.0 |" in lines
    assert "| float32 | natural | 50 | 20 | 7 | 0 | 7 |" in lines
    assert [line for line in lines if line.startswith("###")] == ["### Outputs", "### Outputs"]
    (rule,) = (line for line in lines if line.startswith("| `"))
    assert rule.startswith("| `flex mean` | mean abs(golden − out) ≤ f mean abs(golden − eager);")
    assert rule.endswith("(https://github.com/pytorch/pytorch/blob/main/test/inductor/test_flex_attention.py) |")
    assert "| torch | float32 | 1.5, at most 3 | - | - |" in lines
    assert "| scale | scores_not_scaled | 16/16, 2 | - | - |" in lines
    assert "| local | one_nan | - | - | - |" in lines
    assert "| 1 | element_times_1_01 | float32 | forward |" in lines
    assert "96.2 % of 260 identifiable mutants are killed. Of the 1 that are not, 1 were inconclusive." in text
