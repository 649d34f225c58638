"""Every published fork and bug has its place."""

from __future__ import annotations

import pytest

from refdiff.oracle import Spec
from refdiff.oracle.mistakes import CATALOGUE, ROWS


def test_all_rows_are_there_and_those_of_mistakes_are_made() -> None:
    assert set(ROWS) == {*(f"F{n}" for n in range(1, 14)), *(f"B{n}" for n in range(1, 24))}
    made = {m.row for m in CATALOGUE if m.row}
    assert made == {name for name, row in ROWS.items() if row.where == "mistake"}
    assert all(row.link.startswith("https://") for row in ROWS.values())
    assert {row.where for row in ROWS.values()} == {"mistake", "spec", "recipe", "refused"}


@pytest.mark.parametrize(
    ("row", "preset", "dims", "says"),
    [
        (
            "B2",
            "diff_v2",
            {"query_heads": 6, "key_heads": 2},
            "pairs would straddle groups",
        ),  # h = 3 outputs, 2 key heads
        ("B22", "hf_diffllama", {"query_heads": 6, "key_heads": 3}, "it must be even"),
    ],
)
def test_what_no_kernel_can_compute_is_refused(row: str, preset: str, dims: dict[str, int], says: str) -> None:
    assert ROWS[row].where == "refused"
    with pytest.raises(ValueError, match=says):
        Spec.preset(preset, head_dim=4, **dims)
