"""The machine's ceilings."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.bench.ceilings import CeilingSide
from refdiff.bench.side import Settings


def test_a_ceiling_is_what_is_kept_up_for_a_while_after_a_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of 2 s for 5 s or more are three, beside the first, which takes 90 s."""
    side = CeilingSide(Settings())
    now = [0.0]
    passes: list[float] = []

    def product(*_: object, out: object) -> None:
        passes.append(90.0 if not passes else 2.0)
        now[0] += passes[-1]

    monkeypatch.setattr(np, "matmul", product)
    side.clock = lambda: now[0]
    assert side.gemv(5.0, rows=3, columns=5) == {"rate": 3 * 5 * 4 / 2.0}
    assert passes == [90.0, 2.0, 2.0, 2.0]
    passes.clear()
    assert side.sgemm(0.0, size=7) == {"rate": 2 * 7**3 / 2.0}
    assert passes == [90.0, 2.0]


@pytest.mark.parametrize(("kind", "shape"), [("gemv", {"rows": 256, "columns": 512}), ("sgemm", {"size": 128})])
def test_ceilings_are_positive(kind: str, shape: dict[str, int]) -> None:
    assert 1e6 < CeilingSide(Settings()).answer(kind, **shape)["rate"] < 1e16
