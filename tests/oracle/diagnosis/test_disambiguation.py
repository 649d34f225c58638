"""Names of one function become one; of two that both pass, the one that the output points away from is dropped."""

from __future__ import annotations

import numpy as np

from refdiff.oracle import Recipe
from refdiff.oracle.diagnosis.disambiguation import drop_dominated, merge_equivalent
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Judgement, Target
from refdiff.oracle.inputs.validation import as_float64
from tests.oracle.diagnosis.outputs import named, pair_of_cases

CASE = pair_of_cases("hf_diffllama", "float32")[0]
A, B = (Candidate((named("hf_diffllama", n),), 1.0, 1.0, True) for n in ("keys_crossed", "layer_norm"))


def target(actual: np.ndarray) -> Target:
    inputs = as_float64(CASE.spec, CASE.inputs)
    return Target(inputs, actual, actual, np.ones(actual.shape[:-1]), Recipe.of("float32"))


def test_one_function_under_two_names() -> None:
    again = Candidate((named("hf_diffllama", "keys_crossed"),), 2.0, 1.0, True)
    zeros = np.zeros((2, 6, 9, 32))
    alike = [Judgement(True, 0.1, zeros, zeros[..., 0], ())]
    found = merge_equivalent(CASE.spec, [A, again, B], {c.deviations: (alike, alike) for c in (A, B)}, "dense")
    assert [c.name for c in found] == ["keys_crossed", "layer_norm"]
    assert found[0].also == ("keys_crossed",)
    assert found[1].also == ()
    assert "the same function: keys_crossed" in str(found[0])
    assert found[0].to_dict()["also"] == ["keys_crossed"]


def dropped(place: float, noise: float) -> list[str]:
    """Which of two functions remain for an output at a place between them, where runs scatter by so much."""
    rng = np.random.default_rng(0)
    a, b = np.zeros((1, 2, 30, 8)), 0.1 * rng.normal(size=(1, 2, 30, 8))
    rows = np.ones(a.shape[:-1])
    y = a + place * (b - a) + noise * rng.normal(size=a.shape)
    evidence = {}
    for candidate, f in ((A, a), (B, b)):
        runs = tuple(f + noise * rng.normal(size=f.shape) for _ in range(7))
        judged = [Judgement(True, 0.1, f, rows, runs)]
        evidence[candidate.deviations] = (judged, judged)
    t = (target(y),)
    return [c.name for c in drop_dominated([A, B], evidence, Parts(t, t, t, t, 0))]


def test_all_rows_together_see_what_none_of_them_shows() -> None:
    """A difference of a tenth of the budget of each row; what noise hides, and what lies between, stays ambiguous."""
    assert dropped(0.0, 0.02) == ["keys_crossed"]
    assert dropped(1.0, 0.02) == ["layer_norm"]
    assert dropped(0.0, 3.0) == dropped(0.5, 0.001) == ["keys_crossed", "layer_norm"]
