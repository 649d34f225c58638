"""λ_init of another layer: in λ and the scale, in λ alone, in the scale alone; of which layers, where several pass."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff import oracle
from refdiff.layers import lambda_init
from refdiff.oracle.budget.budget import budget
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.diagnosis.diagnose import diagnose
from refdiff.oracle.diagnosis.fit_layer import BOTH, LAMBDA, SCALE, fit_layer
from refdiff.oracle.diagnosis.fits import fits
from refdiff.oracle.diagnosis.ranking import NONE_FITS, Fit
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Target
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth import truth

DIMS = {"query_heads": 4, "key_heads": 2, "head_dim": 8}
SPEC = Spec.preset("hf_diffllama", **DIMS, layer=3)
PLACES = {BOTH: "", LAMBDA: " in λ alone", SCALE: " in the scale of the output alone"}


def target(
    spec: Spec, of_lambda: int, of_scale: int, dtype: str = "float32", structure: Structure | None = None
) -> Target:
    """An output with λ_init of these layers, counted from 0."""
    inputs = draw(spec, structure or Structure(2, 7, 9), "discriminating", 1, dtype)
    other = spec.replace(lambda_base="constant", lambda_init=lambda_init(of_lambda))
    out = truth(other, inputs).out
    assert out is not None
    if spec.out_scale == "1 - lambda_init":
        out = out / (1 - lambda_init(of_lambda)) * (1 - lambda_init(of_scale))
    return Target.of(round_to(out, dtype), budget(spec, inputs, dtype, members=4))


def found(spec: Spec, t: Target) -> list[Fit]:
    return fit_layer(spec, Parts.of(spec, (t,)))


@pytest.mark.parametrize(
    ("of_lambda", "of_scale", "place"),
    [
        (7, 7, BOTH),
        (4, 3, LAMBDA),
        (3, 2, SCALE),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((0, 0, BOTH), (10, 10, BOTH), (6, 3, LAMBDA), (3, 6, SCALE))
        ),
    ],
)
def test_a_layer_is_named_by_where_it_is(of_lambda: int, of_scale: int, place: str) -> None:
    (fit,) = fits(SPEC, (target(SPEC, of_lambda, of_scale),))
    layer = of_scale if place == SCALE else of_lambda
    assert (fit.parameter, fit.value, fit.fits) == (place, [layer], True)
    assert fit.text == f"λ_init is that of layer {layer}{PLACES[place]}, where the spec's layer is 3"


def test_deep_layers_that_16_bits_do_not_tell_apart_are_said() -> None:
    (fit,) = found(SPEC, target(SPEC, 10, 3, "bfloat16"))
    assert fit.value[0] == 10
    first, last = min(fit.value), max(fit.value)
    assert first < 10 < last < 99
    assert fit.value == sorted(range(first, last + 1), key=lambda n: (abs(n - 10), n))
    assert fit.text.endswith(f"in λ alone, where the spec's layer is 3; layers {first} to {last} pass too")
    (fit,) = found(SPEC, target(SPEC, 30, 3, "bfloat16"))
    assert "where the spec's layer is 3; layers 1" in fit.text
    assert fit.text.endswith(" and deeper pass too")
    (fit,) = found(SPEC, target(SPEC, 10, 3))
    assert fit.value == [10]


@pytest.mark.parametrize(
    ("changes", "of_lambda", "of_scale", "text"),
    [
        ({"lambda_base": "depth - 1"}, 6, 6, "λ_init is that of layer 7, where the spec's layer is 3"),
        (
            {"lambda_base": "constant", "lambda_init": 0.5},
            7,
            7,
            "λ_init is that of layer 7, where the spec has 0.5",
        ),
        ({"out_scale": "none"}, 7, 3, "λ_init is that of layer 7, where the spec's layer is 3"),
    ],
)
def test_how_a_spec_counts_layers(changes: dict[str, Any], of_lambda: int, of_scale: int, text: str) -> None:
    spec = SPEC.replace(**changes)
    (fit,) = found(spec, target(spec, of_lambda, of_scale))
    assert (fit.parameter, fit.value, fit.text) == (LAMBDA if spec.out_scale == "none" else BOTH, [7], text)


def test_packed_sequences() -> None:
    (fit,) = found(SPEC, target(SPEC, 7, 7, structure=Structure(packed=((3, 3), (5, 8)))))
    assert (fit.parameter, fit.value) == (BOTH, [7])


def test_what_no_layer_has_is_of_no_layer() -> None:
    """A factor that no layer has; and a spec without λ_init."""
    t = target(SPEC, 3, 3)
    factored = Target.of(round_to(0.9 * t.actual, "float32"), budget(SPEC, t.inputs, "float32", members=2))
    assert found(SPEC, factored) == []
    v2 = Spec.preset("diff_v2", query_heads=4, key_heads=2, head_dim=8)
    inputs = draw(v2, Structure(2, 7, 9), "discriminating", 1)
    known = budget(v2, inputs, "float32", members=2)
    assert found(v2, Target.of(0.5 * known.expected["out"], known)) == []


@pytest.mark.parametrize(("dtype", "shown"), [("bfloat16", [SCALE, "factor"]), ("float32", ["factor"])])
def test_one_number_that_is_near_a_layer_by_chance(dtype: str, shown: list[str]) -> None:
    """Half the scale of layer 3 is that of layer 11 but for 1 in 2000: in 16 bits both are said."""
    inputs = draw(SPEC, Structure(2, 7, 9), "discriminating", 1, dtype)
    known = budget(SPEC, inputs, dtype, members=4)
    half = Target.of(round_to(0.5 * known.expected["out"], dtype), known)
    assert [f.parameter for f in fits(SPEC, (half,))] == shown


def test_two_numbers_of_16_bits_are_of_a_layer() -> None:
    assert [f.parameter for f in fits(SPEC, (target(SPEC, 7, 7, "bfloat16"),))] == [BOTH]


@pytest.mark.slow
def test_the_answer_names_the_layer_and_nothing_beside_it() -> None:
    case = oracle.cases("discriminating", seed=1, spec=SPEC, dtype="float32")[1]
    out = truth(SPEC.replace(layer=7), case.inputs).out
    answer = diagnose(round_to(out, "float32"), SPEC, case.inputs, recipe="float32")
    assert (answer.status, answer.candidates, answer.notes) == (NONE_FITS, (), ())
    assert "λ_init is that of layer 7, where the spec's layer is 3 (fits" in " ".join(str(answer).split())
