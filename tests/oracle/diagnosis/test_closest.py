"""What comes closest to an output that nothing fits."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.diagnosis import diagnose
from refdiff.oracle.diagnosis.ranking import NONE_FITS, Candidate
from refdiff.oracle.diagnosis.search import SHOWN, closest_of
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Target, looks_like
from tests.oracle.diagnosis.outputs import kernel, named, pair_of_cases

PRESET = "hf_diffllama"
CASE = pair_of_cases(PRESET, "bfloat16")[0]
ONE, HIDDEN, OTHER = (named(PRESET, n) for n in ("layer_norm", "rows_made_to_sum_to_one", "scale_left_out"))


def output(*some: str) -> np.ndarray:
    out = kernel(CASE, [named(PRESET, name) for name in some])
    assert out is not None
    return out


def target(actual: np.ndarray) -> Target:
    return Target.of(actual, budget(CASE.spec, CASE.inputs, "bfloat16", members=2))


def closest(*candidates: Candidate) -> list[str]:
    return [c.name for c in closest_of(CASE.spec, Parts.of(CASE.spec, (target(output("layer_norm")),)), candidates)]


def test_of_a_pair_that_hides_one_the_other_stands_there() -> None:
    single = Candidate((ONE,), 9.0, 0.84, False)
    pair = Candidate((HIDDEN, ONE), 9.0, 0.841, False)
    shown = Candidate((ONE, OTHER), 9.0, 0.85, False)
    assert closest(single, pair) == ["layer_norm"]
    assert closest(single, shown, pair) == ["layer_norm + scale_left_out", "layer_norm"]


def test_a_pair_that_explains_less_than_one_of_the_two_is_not_shown() -> None:
    single, pair = Candidate((ONE,), 9.0, 0.84, False), Candidate((ONE, OTHER), 9.0, 0.81, False)
    assert closest(pair, single) == ["layer_norm"]


def test_what_fits_or_is_not_shown_is_not_looked_at() -> None:
    assert closest(Candidate((HIDDEN, ONE), 0.9, 0.99, True)) == ["rows_made_to_sum_to_one + layer_norm"]
    assert closest(Candidate((HIDDEN, ONE), 99.0, 0.4, False)) == ["rows_made_to_sum_to_one + layer_norm"]
    assert len(closest(*[Candidate((ONE,), 99.0, 0.4, False)] * 5)) == SHOWN


@pytest.mark.parametrize("place", [(0, 0, 8), ()])
def test_two_outputs_look_alike(place: tuple[int, ...]) -> None:
    right = output()
    t, other = target(output("layer_norm")), right.copy()
    assert looks_like(t, right, other)
    other[place] = 1.5 * other[place]
    assert not looks_like(t, right, other)
    other[place] = np.nan
    assert not looks_like(t, right, other)
    assert not looks_like(t, right, None)
    assert not looks_like(t, right, right[:, :2])


@pytest.mark.slow
def test_of_an_output_with_noise_no_pair_stands_before_the_one_deviation_that_is_there() -> None:
    """Pairs with what these inputs cannot show stood in its place."""
    out = output("layer_norm")
    noise = np.random.default_rng(0).normal(size=out.shape) * np.sqrt(np.mean(out**2))
    found = diagnose(out + 0.1 * noise, CASE.spec, CASE.inputs, recipe="bfloat16")
    assert found.status == NONE_FITS
    assert [c.name for c in found.candidates] == ["layer_norm"]
