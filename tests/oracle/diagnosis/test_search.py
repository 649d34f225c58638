"""The search: fewest deviations first, pairs of two axes, all targets together; which of several that fit are kept."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import Deviation, Recipe, budget
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.search import NEARLY_RIGHT, drop_dominated, merge_equivalent, search
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Judgement, Target
from refdiff.oracle.inputs.validation import as_float64
from tests.oracle.deviations.effects import effect
from tests.oracle.diagnosis.outputs import kernel, named, pair_of_cases

BOTH, CASE = pair_of_cases("hf_diffllama", "bfloat16"), pair_of_cases("hf_diffllama", "float32")[0]
KNOWN = tuple(
    named("hf_diffllama", n)
    for n in ("layer_norm", "norm_by_the_sum_of_squares", "scale_left_out", "keys_crossed", "epsilon_of_1e-6")
)


def targets(*names: str) -> tuple[Target, ...]:
    made = []
    for case in BOTH:
        out = kernel(case, [named("hf_diffllama", n) for n in names])
        made.append(Target.of(out, budget(case.spec, case.inputs, "bfloat16", members=2)))
    return tuple(made)


def test_a_pair_is_found() -> None:
    of_two = targets("scale_left_out", "keys_crossed")
    assert search(BOTH[0].spec, of_two, KNOWN, 1)[0] == []
    fitting, closest, _ = search(BOTH[0].spec, of_two, KNOWN, 2)
    assert [c.name for c in fitting] == ["scale_left_out + keys_crossed"]
    assert closest[0].explains > 0.99


def test_what_one_target_hides_the_other_shows() -> None:
    loud, low = targets("epsilon_of_1e-6")
    assert search(BOTH[0].spec, (low,), KNOWN, 1)[0][0].name == "epsilon_of_1e-6"
    fitting, *_ = search(BOTH[0].spec, (loud, low), KNOWN, 1)
    assert [c.name for c in fitting] == ["epsilon_of_1e-6"]


def test_a_pair_that_rounds_much_worse_than_a_right_kernel_is_found() -> None:
    case = CASE
    names = ("scores_scaled_by_the_root_of_half_of_d", "subtracted_before_the_softmax")
    some = tuple(named("hf_diffllama", n) for n in names)
    out = kernel(case, some)
    target = Target.of(out, budget(case.spec, case.inputs, "float32", members=2))
    fitting, *_ = search(case.spec, (target,), (*some, *KNOWN), 2)
    assert [c.name for c in fitting] == [" + ".join(names)]


def test_pairs_are_of_two_axes() -> None:
    of_one_axis = targets("layer_norm", "norm_by_the_sum_of_squares")
    assert search(BOTH[0].spec, of_one_axis, KNOWN[:2], 2)[0] == []


def test_a_single_that_is_nearly_right_is_found_where_the_output_points_to_it() -> None:
    case = CASE
    known = budget(case.spec, case.inputs, "float32", members=2)

    def scores_larger(by: float) -> Deviation:
        scale = (1 + by) * case.spec.head_dim**-0.5
        return Deviation("scores_larger", "Scores a little larger.", "scale", fields=lambda s: {"scale": scale})

    slight = scores_larger(4e-3 / effect(case.spec, case.inputs, scores_larger(1e-3), known))
    assert effect(case.spec, case.inputs, slight, known) == pytest.approx(4.0, rel=0.02)
    wrong, right = kernel(case, [slight]), kernel(case, [])
    fitting, *_ = search(case.spec, (Target.of(wrong, known),), (slight,), 2)
    assert [c.name for c in fitting] == ["scores_larger"]
    fitting, closest, notes = search(case.spec, (Target.of(right, known),), (slight,), 2)
    assert not fitting
    assert not any(c.fits for c in closest)
    assert notes == (NEARLY_RIGHT,)


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
