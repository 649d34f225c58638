"""A fitted number held against outputs: all must pass, and what is the spec's own number is nothing to show."""

from __future__ import annotations

from dataclasses import replace

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.deviations.deviation import Problem
from refdiff.oracle.diagnosis.parameter_fit import Trial, held, is_no_deviation
from refdiff.oracle.diagnosis.variants import Target
from refdiff.oracle.rounding import round_to

SPEC = small_spec("hf_diffllama")


def target(factor: float) -> Target:
    """A right output in bfloat16, multiplied."""
    inputs = draw(SPEC, Structure(1, 9, 12), "discriminating", 3, "bfloat16")
    known = budget(SPEC, inputs, "bfloat16", members=4)
    return Target.of(round_to(factor * known.expected["out"], "bfloat16"), known)


def factor(value: float) -> Trial:
    return Trial("factor", value, "", lambda inputs: Problem(SPEC, inputs, factor=value))


def test_all_targets_must_pass() -> None:
    (found,) = held(factor(2.0), [(target(2.0), target(2.0))])
    assert found.fits
    assert found.explains > 0.99
    assert held(factor(2.0), [(target(2.0), target(3.0))]) == []
    assert held(factor(2.0), [(target(2.0),), (target(3.0),)]) == []


def test_what_does_not_pass_is_shown_where_it_explains_nearly_all() -> None:
    (found,) = held(factor(2.05), [(target(2.0),)])
    assert not found.fits
    assert 0.99 < found.explains < 1
    assert held(factor(2.2), [(target(2.0),)]) == []


def test_the_number_of_the_spec_is_not_shown() -> None:
    """A factor so near to 1 that a right kernel may have it, though the output passes with it too."""
    t = target(1.0)
    assert is_no_deviation(factor(1.0005), (t,))
    assert not is_no_deviation(factor(1.05), (t,))
    assert not is_no_deviation(factor(1.0005), (t, replace(t, allowed=None)))
    assert held(factor(1.0005), [(t,)]) == []
