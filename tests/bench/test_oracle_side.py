"""What is measured of the oracle gives the answers that it should; another answer is an error, not a time."""

from __future__ import annotations

import pytest

from refdiff.bench import oracle_side
from refdiff.bench.oracle_side import OracleSide
from refdiff.bench.side import Settings


@pytest.mark.parametrize("do", ["check", "diagnose"])
def test_it_is_timed(do: str) -> None:
    assert getattr(OracleSide(Settings()), do)(size=23, batch=2)["seconds"] > 0


def test_another_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle_side.oracle, "check", oracle_side.oracle.diagnose)
    with pytest.raises(ValueError, match="the oracle: got no deviation, expected pass"):
        OracleSide(Settings()).check(23, 2)
