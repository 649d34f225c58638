"""Wrong gradients of right outputs: names of derivatives, factors, parts of sums, and several mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, budget, diagnose
from refdiff.oracle.cases.fixed import Case, cases, small_spec
from refdiff.oracle.diagnosis.ranking import AMBIGUOUS, NO_DEVIATION, NONE_FITS, UNIQUE, Ranking
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES
from refdiff.oracle.mistakes.kernel import rounded_mistakes
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import quantise
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.truth.backward import backward
from tests.oracle.diagnosis.outputs import rounded

ALIKE = ("gradient_without_causal_mask", "no_causal_mask"), ("gradient_without_mask", "no_padding_mask")
"""A mistake in the backward pass, and one of the whole kernel that has these gradients."""


def gradients(case: Case, *some: Mistake, spec: Spec | None = None) -> dict[str, np.ndarray]:
    """Gradients of a kernel with mistakes, or of another spec, in an order that no budget is made of."""
    recipe = Recipe.of(case.dtype)
    dout = round_to(np.asarray(case.dout, dtype=np.float64), recipe.storage)
    exact = as_float64(case.spec, quantise(case.inputs, recipe))
    found = backward(spec or case.spec, exact, dout, rounded_mistakes(recipe, HELD_OUT[0], some))
    return {f"d{name}": round_to(x, recipe.storage) for name, x in found.items()}


def ask(case: Case, given: dict[str, np.ndarray], **options: Any) -> Ranking:
    """Diagnose gradients beside a right output."""
    right = rounded(case.spec, case.inputs, case.dtype)["out"]
    return diagnose({"out": right, **given}, case.spec, case.inputs, recipe=case.dtype, dout=case.dout, **options)


@pytest.mark.parametrize("mistake", BACKWARD_MISTAKES, ids=str)
def test_a_wrong_derivative_has_its_name(mistake: Mistake) -> None:
    """Unless it changes nothing here, or is that of another one of the list."""
    case = cases("discriminating", 5, spec=small_spec("hf_diffllama"), dtype="bfloat16")[1]
    wrong = gradients(case, mistake)
    known = budget(case.spec, case.inputs, case.dtype, dout=case.dout)
    if known.judge(wrong).status != "fail":
        return
    found = ask(case, wrong)
    names = {name for f in found.findings for h in f.hypotheses for name in (h.name, *f.also)}
    also = next((other for one, other in ALIKE if one == mistake.name), mistake.name)
    assert found.status in (UNIQUE, AMBIGUOUS), found
    assert names & {mistake.name, also}, found


@pytest.mark.parametrize(
    ("changes", "name"), [({"causal": "none"}, "no_causal_mask"), ({"norm": "layer"}, "layer_norm")]
)
def test_gradients_of_another_spec_have_its_name(changes: dict[str, str], name: str) -> None:
    case = cases("discriminating", 5, spec=small_spec("hf_diffllama"), dtype="float32")[1]
    found = ask(case, gradients(case, spec=case.spec.replace(**changes)))
    assert (found.status, found.name) == (UNIQUE, name), found
    assert found.notes[0].startswith("the output is right, dq is not: ")
    assert "the output is right" not in str(found)


def test_factors_and_zeros_are_named_with_their_numbers() -> None:
    case = cases("discriminating", 5, spec=small_spec("hf_diffllama"), dtype="float32")[1]
    right = gradients(case)
    both = ask(case, {name: 2 * x for name, x in right.items()})
    assert both.name == f"factor of {', '.join(right)} = 2", both
    one = ask(case, {**right, "dk": -0.5 * right["dk"]})
    assert one.name == "factor of dk = -0.5", one
    none = ask(case, {**right, "dv": 0 * right["dv"]})
    assert none.name == "dv zero", none
    assert ask(case, right).status == NO_DEVIATION


def test_each_of_two_kernels_may_have_its_own_mistake() -> None:
    """The gradient of k sees the future, that of v is of other pairs."""
    case = cases("discriminating", 5, spec=small_spec("hf_diffllama"), dtype="float32")[1]
    right, future, pairs = (
        gradients(case, spec=case.spec.replace(**changes))
        for changes in ({}, {"causal": "none"}, {"pairing": "interleaved"})
    )
    found = ask(case, {**right, "dk": future["dk"], "dv": pairs["dv"]}, max_deviations=1)
    assert found.status == NONE_FITS
    assert found.notes[0].startswith("dk agrees with no_causal_mask ("), found
    assert found.notes[1].startswith("dv agrees with interleaved_pairs ("), found


@pytest.mark.slow
def test_two_mistakes_in_one_backward_pass_are_named() -> None:
    case = cases("discriminating", 5, spec=small_spec("ms_v1"), dtype="float32")[1]
    some = [m for m in BACKWARD_MISTAKES if m.name in ("rms_detached", "value_gradient_of_first_map_only")]
    found = ask(case, gradients(case, *some))
    assert {h.name for f in found.findings for h in f.hypotheses} == {m.name for m in some}, found


def test_noise_has_no_name() -> None:
    case = cases("discriminating", 5, spec=small_spec("hf_diffllama"), dtype="float32")[1]
    right = gradients(case)
    size = np.sqrt(np.mean(right["dk"] ** 2))
    found = ask(case, {**right, "dk": right["dk"] + size * np.random.default_rng(0).normal(size=right["dk"].shape)})
    assert found.status == NONE_FITS, found
    assert not found.findings
