"""An answer in words and as JSON."""

from __future__ import annotations

import json

from refdiff.oracle import Deviation, Ranking
from refdiff.oracle.diagnosis.ranking import NONE_FITS, UNIQUE, Candidate, Fit

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


def test_a_note_that_a_candidate_repeats_is_printed_once() -> None:
    notes = ("dq is that of halved (Half of it)", "the output is right, dq is not: element 0 is 1, expected 2 ± 0.1")
    ranking = Ranking(UNIQUE, (Candidate((ONE,), 0.5, 1.0, True),), notes=notes)
    assert str(ranking).splitlines()[-1] == "  dq is that of halved"
    assert str(ranking).count("Half of it") == 1
    assert ranking.to_dict()["notes"] == list(notes)
    assert str(Ranking(NONE_FITS, notes=notes, explained=True)).startswith("none fits, but a note explains it\n")
