"""Outputs that are multiplied by a number, or by one for each head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.diagnosis.diagnose import diagnose
from refdiff.oracle.diagnosis.fits import fit_factor
from refdiff.oracle.diagnosis.variants import Target
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth import truth

SHAPE = Structure(2, 9, 12)


def target(spec: Spec, shape: Structure = SHAPE) -> Target:
    inputs = draw(spec, shape, "discriminating", 3)
    known = budget(spec, inputs, "float32", members=2)
    return Target.of(known.expected["out"].copy(), known)


@pytest.mark.parametrize("name", ["hf_diffllama", "ms_v1", "diff_v2"])
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_factor_by_head_is_found(name: str, dtype: str) -> None:
    """Of all heads, and of two where the rest is right."""
    spec = small_spec(name)
    inputs = draw(spec, SHAPE, "discriminating", 3, dtype)
    right = truth(spec, inputs).out
    assert right is not None
    for factors in ([0.5, 0.7, 0.9, 1.1, 1.3, 1.5], [0.5, 0.7, 1.0, 1.0, 1.0, 1.0]):
        out = round_to(right * np.asarray(factors)[:, None, None], dtype)
        found = diagnose(out, spec, inputs, recipe=dtype, max_deviations=1)
        (fit,) = found.fits
        assert fit.fits
        assert fit.value == pytest.approx(factors, rel=1e-3)
        said = ", ".join(f"{x:g}" for x in factors)
        assert f"out is multiplied by a factor that differs by head: {said} (fits" in " ".join(str(found).split())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf_diffllama", "out is multiplied by 0.9: it is scaled by 0.4764, where the spec has 0.5293"),
        ("diff_v2", "out is multiplied by 0.9, where the spec has no factor"),
    ],
)
def test_one_factor_is_found(name: str, words: str) -> None:
    spec = small_spec(name)
    t = target(spec)
    found = diagnose(round_to(0.9 * t.actual, "float32"), spec, t.inputs, recipe="float32", max_deviations=1)
    assert [f.text for f in found.fits] == [words]


def test_a_layer_has_one_factor() -> None:
    spec = small_spec("hf_diffllama")
    t = target(spec, Structure(1, 6, 13, hidden=24))
    trials = list(fit_factor(spec, (replace(t, actual=3 * t.actual),)))
    assert [trial.text for trial in trials] == ["out is multiplied by 3"]


def test_of_zeros_and_of_nothing_there_is_no_factor() -> None:
    spec = small_spec("hf_diffllama")
    t = target(spec)
    t.actual[:, 3] = 0
    assert not list(fit_factor(spec, (t,)))
    empty = replace(t, actual=t.actual[:0], expected=t.expected[:0], rows=t.rows[:0])
    assert not list(fit_factor(spec, (empty,)))
