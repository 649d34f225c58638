"""A few rows exclude what is nearly the truth, and never what the output is of; they spare the roundings of a whole."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.cases.fixed import Case
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.deviations import deviated, output
from refdiff.oracle.diagnosis import variants
from refdiff.oracle.diagnosis.diagnose import diagnose
from refdiff.oracle.diagnosis.ranking import NONE_FITS
from refdiff.oracle.diagnosis.sub_case import few_rows_exclude
from refdiff.oracle.diagnosis.variants import Target
from refdiff.oracle.spec import Spec
from tests.oracle.diagnosis.outputs import kernel, named

SPEC = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=3)
T = 150
ORDERS = 7
"""Of roundings, in which one candidate is judged."""
SHAPE = Structure(1, T, T)
INPUTS = draw(SPEC, SHAPE, "tiny_values", 3, "bfloat16")
UNLISTED = SPEC.replace(scale=1.05 * SPEC.head_dim**-0.5)


def given(spec: Spec, *names: str) -> np.ndarray:
    out = kernel(Case("", "tiny_values", 3, "bfloat16", spec, SHAPE, INPUTS), [named("hf_diffllama", n) for n in names])
    assert out is not None
    return out


def excluded(out: np.ndarray, *names: str) -> bool:
    target = Target.of(out, budget(SPEC, INPUTS, "bfloat16", members=4))
    some = [named("hf_diffllama", n) for n in names]
    problem = deviated(SPEC, target.inputs, some)
    assert problem is not None
    wrong = output(problem)
    assert wrong is not None
    return few_rows_exclude(target, lambda inputs: deviated(SPEC, inputs, some), wrong)


@pytest.mark.parametrize(
    "name", ["layer_norm", "keys_crossed", "subtracted_before_the_softmax", "one_future_token_seen"]
)
def test_the_right_name_is_not_excluded(name: str) -> None:
    assert not excluded(given(SPEC, name), name)


@pytest.mark.parametrize("name", ["norm_over_half_of_a_head", "layer_norm", "keys_crossed"])
def test_another_is(name: str) -> None:
    assert excluded(given(UNLISTED), name)


def test_rows_that_alone_give_something_else_say_nothing() -> None:
    assert not excluded(given(UNLISTED), "tokens_laid_out_before_heads")


@pytest.mark.slow
def test_of_an_unlisted_number_that_is_nearly_the_spec_s_little_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Counter[int]()
    rounded = variants._rounded

    def counted(problem: Any, *rest: Any) -> np.ndarray:
        whole[problem.inputs["q"].shape[2]] += 1
        return rounded(problem, *rest)

    monkeypatch.setattr(variants, "_rounded", counted)
    found = diagnose(given(UNLISTED), SPEC, INPUTS, recipe="bfloat16")
    assert found.status == NONE_FITS
    assert "scale" in [f.parameter for f in found.fits]
    assert whole[T] <= 2 * ORDERS
