"""The machine's ceilings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.bench import ceilings
from refdiff.bench.ceilings import WAYS, CeilingSide
from refdiff.bench.side import Settings


def test_a_ceiling_is_what_is_kept_up_for_a_while_after_a_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of 2 s for 5 s or more are three, beside the first, which takes 90 s."""
    side = CeilingSide(Settings(least=5.0))
    now = [0.0]
    passes: list[float] = []

    def product(*_: object, out: object) -> None:
        passes.append(90.0 if not passes else 2.0)
        now[0] += passes[-1]

    monkeypatch.setattr(np, "matmul", product)
    side.clock = lambda: now[0]
    assert side.gemv(rows=3, columns=5) == {"rate": 3 * 5 * 4 / 2.0}
    assert passes == [90.0, 2.0, 2.0, 2.0]
    passes.clear()
    assert side.sgemm(size=7) == {"rate": 2 * 7**3 / 2.0}
    assert passes == [90.0, 2.0, 2.0, 2.0]


def test_reading_is_as_fast_as_its_fastest_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ways share 6 s: one goes on for 2 s in passes of 1 s; of the others one pass takes 3 s, or 0.5 s."""
    side = CeilingSide(Settings(least=6.0))
    now = [0.0]
    passes: list[float] = []

    def way(seconds: float) -> ceilings.Way:
        def work(rows: Any, vector: Any, out: Any) -> None:
            assert (rows.shape, vector.shape, out.shape) == ((8, 6), (6,), (8,))
            passes.append(seconds)
            now[0] += seconds

        return work

    monkeypatch.setattr(ceilings, "WAYS", (way(1.0), way(3.0), way(0.5)))
    side.clock = lambda: now[0]
    assert side.read(rows=8, columns=6) == {"rate": 8 * 6 * 4 / 0.5}
    assert passes == [1.0, *[1.0] * 2, 3.0, *[0.5] * 4]


def test_every_way_reads_all_of_the_matrix_and_most_multiply_it() -> None:
    rng = np.random.default_rng(0)
    side = CeilingSide(Settings(threads=2, least=0))
    side.read(rows=48, columns=6)
    rows, vector = rng.standard_normal((48, 6), np.float32), rng.standard_normal(6, np.float32)
    assert len(WAYS) >= 2
    for way in WAYS[1:]:
        out = np.full(48, np.nan, np.float32)
        way(rows, vector, out)
        np.testing.assert_allclose(out, rows @ vector, rtol=1e-4, atol=1e-5)
    _, _, product = side._operands[ceilings._matrix]
    np.testing.assert_array_equal(product, 3.0)  # sums of six halves, whichever thread had the row
