"""An answer in words and as JSON."""

from __future__ import annotations

import json

from refdiff.oracle import Deviation, Ranking
from refdiff.oracle.diagnosis.ranking import NONE_FITS, Candidate, Fit

ONE = Deviation("halved", "Half of it.", "scale", "B14", "https://example.org/1", aliases=("cut_in_two",))


def test_json() -> None:
    fit = Fit("norm_eps", 0.01, "ε is 0.01", 0.9, True)
    ranking = Ranking(NONE_FITS, (Candidate((ONE,), 40.0, 0.2, False),), (fit,))
    found = json.loads(json.dumps(ranking.to_dict()))
    assert found["status"] == "none fits"
    assert found["name"] is None
    assert found["candidates"][0]["deviations"][0]["link"] == "https://example.org/1"
    said = {"parameter": "norm_eps", "value": 0.01, "text": "ε is 0.01", "fits": True, "explains": 1.0}
    assert found["fits"] == [said]
    assert "does not fit" in str(ranking)
    assert "      scale: Half of it. Also called cut_in_two. https://example.org/1" in str(ranking).splitlines()
    assert "ε is 0.01  (fits, residual 0.9)" in str(ranking)
    assert str(ranking).splitlines()[0] == "none fits, but a number does"
