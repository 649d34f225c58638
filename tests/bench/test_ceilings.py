"""The machine's ceilings."""

from __future__ import annotations

import pytest

from refdiff.bench.ceilings import CeilingSide
from refdiff.bench.side import Settings


def test_the_fastest_of_three_counts() -> None:
    side = CeilingSide(Settings())
    ticks = iter([0.0, 4.0, 10.0, 12.0, 20.0, 25.0])
    side.clock = lambda: next(ticks)
    assert side.gemv(rows=3, columns=5) == {"rate": 3 * 5 * 4 / 2.0}
    ticks = iter([0.0, 4.0, 10.0, 18.0, 20.0, 25.0])
    assert side.sgemm(size=7) == {"rate": 2 * 7**3 / 4.0}


@pytest.mark.parametrize(("kind", "shape"), [("gemv", {"rows": 256, "columns": 512}), ("sgemm", {"size": 128})])
def test_ceilings_are_positive(kind: str, shape: dict[str, int]) -> None:
    assert 1e6 < CeilingSide(Settings()).answer(kind, **shape)["rate"] < 1e16
