"""What all sides share, on a clock that the test turns."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.bench import side as module
from refdiff.bench.side import Settings, Side

from .fakes import FakeSide


def test_the_clock_runs_until_the_device_is_done() -> None:
    """Before the work it waits too, so that what was begun earlier is not counted: 0.5 s not counted, 0.5 s counted."""
    side = FakeSide()

    def work() -> str:
        side.now += 3
        return "result"

    assert side.timed(work) == (3.5, "result")
    assert side.now == 104.0


def test_only_what_is_offered_is_answered() -> None:
    side = Side(Settings())
    assert side.answer("prepare") == {}
    assert set(side.answer("peak")) == {"bytes", "own_bytes"}
    with pytest.raises(ValueError, match="Side: got request 'sync', expected one of prepare, peak"):
        side.answer("sync")
    with pytest.raises(ValueError, match="FakeSide: got request 'start', expected one of prepare, peak, product, open"):
        FakeSide().answer("start")


def test_products_go_on_for_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two weights of 0.25 s each: a pass takes 0.5 s, so 1.1 s need three; 1.5 s and the wait are over six products."""
    monkeypatch.setattr(module, "CACHES", 2 * 4 * 3 * 5)
    side = FakeSide()
    answer = side.product(size=2, outputs=3, inputs=5, least=1.1)
    assert answer["seconds"] == pytest.approx(2.0 / 6)
    weight = np.random.default_rng(0).standard_normal((3, 5), np.float32)
    x = np.random.default_rng(1).standard_normal((2, 5), np.float32)
    np.testing.assert_allclose(answer["sample"], (x.astype(np.float64) @ weight.T)[-1], rtol=1e-5)
    assert side.product(size=2, outputs=3, inputs=5, least=0)["seconds"] == pytest.approx(1.0 / 2)
    monkeypatch.setattr(module, "CACHES", 1)
    assert FakeSide().product(size=2, outputs=3, inputs=5, least=0)["seconds"] == pytest.approx(0.75)
