"""λ and the scale of each head, from an output that has others than the spec."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.layers import lambda_init
from refdiff.oracle.budget.budget import budget
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.diagnosis.fit_lambda import fit_lambda, with_name
from refdiff.oracle.diagnosis.parameter_fit import Trial, held
from refdiff.oracle.diagnosis.ranking import Fit
from refdiff.oracle.diagnosis.variants import Target
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth import truth


def target(spec: Spec, lambdas: Any, factor: Any, structure: Structure | None = None, dtype: str = "float32") -> Target:
    """An output with these λ and this factor."""
    inputs = draw(spec, structure or Structure(2, 7, 9), "discriminating", 3, dtype)
    changed = spec.replace(lambda_form="given", out_scale="none")
    other = {n: x for n, x in inputs.items() if n not in (*VECTORS, "lambda_logits")} | {
        "lambda_full": np.asarray(lambdas)
    }
    out = truth(changed, other).out
    assert out is not None
    out = out * np.broadcast_to(factor, spec.heads)[:, None, None]
    return Target.of(round_to(out, dtype), budget(spec, inputs, dtype, members=2))


def found(spec: Spec, t: Target) -> tuple[Trial, list[Fit]]:
    """λ and scale together, fitted and held against the output."""
    trial = fit_lambda(spec, (t,))[-1]
    return trial, held(trial, [(t,)])


@pytest.mark.parametrize("name", ["hf_diffllama", "ms_v1", "diff_v2"])
@pytest.mark.parametrize("factor", [0.37, np.linspace(0.3, 1.4, 6)])
def test_lambda_of_every_head_and_the_scale(name: str, factor: Any) -> None:
    spec = small_spec(name)
    lambdas = np.linspace(0.2, 0.9, 6)
    trial, (fit,) = found(spec, target(spec, lambdas, factor))
    assert fit.fits
    assert trial.value["lambda_full"] == pytest.approx(lambdas, abs=1e-6)
    assert trial.value["scale"] == pytest.approx(np.broadcast_to(factor, 6), rel=1e-4)
    assert "by head 0.2, 0.34" in trial.text
    own, scale = ("one for each token", "1") if name == "diff_v2" else ("0.", "0.5293")
    assert f"0.9, where the spec has {own}" in trial.text
    assert trial.text.endswith(f", where the spec has {scale}")


def test_lambda_alone_where_the_scale_is_that_of_the_spec() -> None:
    spec = small_spec("hf_diffllama")
    t = target(spec, 0.43, 1 - lambda_init(2))
    (fit,) = held(fit_lambda(spec, (t,))[0], [(t,)])
    assert fit.fits
    assert fit.value["lambda_full"] == pytest.approx([0.43] * 6, abs=1e-5)
    assert fit.text.startswith("λ is 0.43 in every head, where the spec has ")
    assert "scale" not in fit.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (lambda_init(3), f"λ is {lambda_init(3):.4g} in every head, which is λ_init of layer 3, where"),
        (lambda_init(2), f"λ is {lambda_init(2):.4g} in every head, which is λ_init of the layer, where"),
        (lambda_init(10), f"λ is {lambda_init(10):.4g} in every head, which is λ_init of layer 10, where"),
        (lambda_init(11), f"λ is {lambda_init(11):.4g} in every head, which is λ_init of layer 11, where"),
        (0.8, "λ is exactly 0.8 in every head, where"),
        (1.0, "λ is exactly 1 in every head, where"),
        (0.793, "λ is 0.793 in every head, where"),
        (0.992, "λ is 0.992 in every head, where"),
        (0.80002, "λ is 0.8 in every head, where"),
        (lambda_init(3) + 1e-4, f"λ is {lambda_init(3) + 1e-4:.4g} in every head, where"),
    ],
)
def test_a_lambda_has_a_name_where_the_output_passes_with_just_that(value: float, text: str) -> None:
    spec = small_spec("hf_diffllama")
    t = target(spec, value, 0.5)
    _, (fit,) = found(spec, t)
    assert fit.fits
    assert with_name(spec, (t,), fit).text.startswith(text)


def test_names_that_16_bits_do_not_tell_apart() -> None:
    spec = small_spec("hf_diffllama")
    t = target(spec, lambda_init(10), 0.5, dtype="bfloat16")
    _, (fit,) = found(spec, t)
    text = with_name(spec, (t,), fit).text
    assert " in every head, which may be λ_init of layer " in text
    assert "λ_init of layer 10" in text
    assert " or λ_init of layer " in text
    t = target(spec, 1.0, 0.5, dtype="bfloat16")
    _, (fit,) = found(spec, t)
    assert " in every head, which may be 1, where" in with_name(spec, (t,), fit).text


def test_a_lambda_by_head_has_no_name() -> None:
    spec = small_spec("hf_diffllama")
    t = target(spec, [0.8, 0.8, 1.0, 1.0, 0.0, 0.8], 0.5)
    _, (fit,) = found(spec, t)
    assert with_name(spec, (t,), fit) == fit


def test_packed_sequences() -> None:
    spec = small_spec("hf_diffllama")
    trial, (fit,) = found(spec, target(spec, 0.33, 0.5, Structure(packed=((3, 3), (5, 8)))))
    assert fit.fits
    assert trial.value["lambda_full"] == pytest.approx([0.33] * 6, abs=1e-6)


def test_where_there_is_nothing_to_fit() -> None:
    spec = small_spec("hf_diffllama")
    t = target(spec, 0.5, 0.5)
    empty = Target(t.inputs, t.actual[:0], t.expected[:0], t.rows[:0], t.recipe)
    assert fit_lambda(spec, (empty,)) == []
    assert fit_lambda(spec.replace(norm_over="all_heads"), (t,)) == []
