"""An answer in words and as JSON."""

from __future__ import annotations

import json

from refdiff.oracle import Deviation, Ranking, cases
from refdiff.oracle.diagnosis.ranking import AMBIGUOUS, NONE_FITS, UNIQUE, Candidate, Fit
from tests.oracle.example_inputs import small

ONE = Deviation("halved", "Half of it.", "scale", "B14", "https://example.org/1", aliases=("cut_in_two",))
TWO = Deviation("turned", "The other way.", "rope kind")


def test_a_name_with_its_link() -> None:
    ranking = Ranking(UNIQUE, (Candidate((ONE, TWO), 0.71, 0.999, True),))
    assert ranking.name == "halved + turned"
    assert str(ranking).splitlines() == [
        "unique: halved + turned",
        "  halved + turned  (fits, residual 0.71)",
        "      scale: Half of it. Also called cut_in_two. https://example.org/1",
        "      rope kind: The other way.",
    ]


def test_it_is_80_columns_wide() -> None:
    two = (ONE, Deviation("turned", "The other way, " + "and so on " * 10, "rope kind"))
    fit = Fit("factor", 0.5, f"out is multiplied by {'0.5, ' * 20}0.5", 0.9, True)
    said = str(Ranking(NONE_FITS, (Candidate(two, 0.71, 0.999, False),), (fit,), notes=("note " * 30,)))
    assert max(map(len, said.splitlines())) <= 80
    assert "0.5 (fits, residual 0.9)" in " ".join(said.split())


def test_of_many_that_could_not_be_shown_a_few_are_printed() -> None:
    names = [f"name_{n}" for n in range(9)]
    note = f"these inputs could not show 9 deviations: {', '.join(names)}"
    ranking = Ranking(UNIQUE, (Candidate((ONE,), 0.71, 0.999, True),), notes=(note, "the others: a, b, c, d, e, f, g"))
    said = " ".join(str(ranking).split())
    assert "could not show 9 deviations: name_0, name_1, name_2, name_3, name_4, name_5, and others (all" in said
    assert "name_6" not in said
    assert "the others: a, b, c, d, e, f, g" in said
    assert ranking.to_dict()["notes"][0] == note


def test_a_share_is_rounded_down() -> None:
    assert "does not fit, explains 99%," in str(Candidate((ONE,), 40.0, 0.9999, False))


def test_names_that_were_not_tried_in_pairs_are_counted() -> None:
    note = "2 names were not tried in pairs, since the inputs are large: one, two"
    said = " ".join(str(Ranking(NONE_FITS, notes=(note,))).split())
    assert said == "none fits 2 names were not tried in pairs, since the inputs are large (they are in `notes`)"


def test_several_names_have_none() -> None:
    case = cases("discriminating", spec=small("ms_v1"))[0]
    some = (Candidate((ONE,), 0.7, 1.0, True), Candidate((TWO,), 0.8, 1.0, True))
    ranking = Ranking(AMBIGUOUS, some, separating=case, notes=("look",))
    assert ranking.name is None
    assert str(ranking).splitlines()[0] == "ambiguous"
    assert f"the case {case.name} tells them apart" in str(ranking)
    assert str(ranking).endswith("look")


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
    assert "ε is 0.01  (fits, residual 0.9)" in str(ranking)
    assert str(ranking).splitlines()[0] == "none fits, but a number does"
