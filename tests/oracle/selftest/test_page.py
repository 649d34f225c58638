"""The page: numbers where they belong, and none that was not counted."""

from __future__ import annotations

from tests.oracle.selftest.page import page
from tests.oracle.selftest.table import Count, Table


def _table() -> Table:
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
    text = page(_table(), range(7, 9), "a.b:KERNELS")
    assert "\n    refdiff check --selftest --seeds 2 --kernels a.b:KERNELS --markdown\n" in text
    assert "Every single deviation, and 1 mistakes in one place; seeds 7, 8," in text
    lines = text.split("\n")
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


def test_without_kernels_of_others_and_without_survivors() -> None:
    table = _table()
    table.errors.clear()
    table.survivors.clear()
    text = page(table, range(20))
    assert "seeds 0 to 19," in text
    assert "--seeds 20 --markdown" in text
    assert "## Real kernels" not in text
    assert "that passed" not in text
