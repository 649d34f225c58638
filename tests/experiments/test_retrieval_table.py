"""Tables of key retrieval: means, intervals and differences by hand, and what is missing."""

from __future__ import annotations

import math
from typing import Any

import pytest
from experiments.retrieval_table import MEASURES, differences, mean_and_interval, table


def one(wiring: str, seed: int, accuracy: float, depths: list[float | None]) -> dict[str, Any]:
    measured = dict.fromkeys(MEASURES, 0.25) | {"accuracy": accuracy}
    by_depth = dict.fromkeys(("accuracy", "answer", "noise"), depths)
    return {"wiring": wiring, "seed": seed, "measured": {"29": measured | {"depths": by_depth}}}


RUNS = [
    one("hf", 0, 0.5, [0.1, 0.2, 0.3, 0.4, None]),
    one("none", 0, 0.25, [0.1, 0.1, 0.1, 0.1, None]),
    one("hf", 1, 0.75, [0.3, 0.2, 0.1, 0.0, None]),
    one("none", 1, 0.625, [0.1, 0.1, 0.1, 0.1, None]),
    one("hf", 2, 1.0, [0.2, 0.2, 0.2, 0.2, None]),
]


def test_mean_and_interval_by_hand() -> None:
    assert mean_and_interval([2.0, 4.0]) == pytest.approx((3.0, 12.706))
    assert mean_and_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3.0, 2.776 * math.sqrt(2.5 / 5)))
    assert math.isnan(mean_and_interval([1.0])[1])


def test_differences_are_of_seeds_that_both_kinds_have() -> None:
    assert differences(RUNS, 29, "accuracy") == [0.25, 0.125]
    assert differences(RUNS[:1], 29, "accuracy") == []
    assert differences([one("v2", 0, 0.875, []), *RUNS], 29, "accuracy", "v2") == [0.625]


def test_a_table_has_a_line_of_each_kind_and_of_the_differences() -> None:
    head, differential, plain, both = table(RUNS).splitlines()
    assert head.split() == ["tokens", "wiring", "accuracy", "answer", "noise", "net", "answer", "net", "noise"]
    assert differential.split()[:5] == ["29", "hf", "75.0", "±", f"{100 * 4.303 * 0.25 / math.sqrt(3):.1f}"]
    assert plain.split()[:5] == ["29", "none", "43.8", "±", f"{100 * 12.706 * 0.1875:.1f}"]
    assert both.split()[:5] == ["29", "hf−none", "18.8", "±", f"{100 * 12.706 * 0.0625:.1f}"]
    assert all(len(line) <= 80 for line in (head, differential, plain, both))
