"""The machine's ceilings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.bench.sides import Ceilings, Settings


def test_a_ceiling_is_what_is_kept_up_for_a_while_after_a_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of 2 s for 5 s or more are three, beside the first, which takes 90 s; a sum takes 0.5 s."""
    side = Ceilings(Settings(min_seconds=5.0, pause=0))
    now = [0.0]
    passes: list[float] = []

    def take(seconds: float) -> None:
        passes.append(seconds)
        now[0] += seconds

    def add(numbers: Any, *, axis: None) -> None:
        assert numbers.nbytes == 3 * 6 * 4
        take(0.5)

    monkeypatch.setattr(np, "matmul", lambda *_, out: take(2.0 if passes else 90.0))
    monkeypatch.setattr(np, "add", SimpleNamespace(reduce=add))
    side.clock = lambda: now[0]
    assert side.gemv(rows=3, columns=6)() == {"rate": 3 * 6 * 4 / 2.0, "read": 3 * 6 * 4 / 0.5}
    assert passes == [90.0, 2.0, 2.0, 2.0, *[0.5] * 11]
    passes.clear()
    assert side.sgemm(size=7)() == {"rate": 2 * 7**3 / 2.0}
    assert passes == [90.0, 2.0, 2.0, 2.0]


def test_every_number_of_the_matrix_is_read_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[Any] = []
    monkeypatch.setattr(np, "add", SimpleNamespace(reduce=lambda numbers, axis: parts.append(numbers)))
    Ceilings(Settings(threads=2, min_seconds=0, pause=0)).gemv(rows=48, columns=6)()
    assert sum(part.nbytes for part in parts) == 2 * 48 * 6 * 4  # once to wake the threads
    assert len(parts) == 2 * 2
