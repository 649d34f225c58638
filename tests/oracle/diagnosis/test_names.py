"""No wrong name, and no name for what the inputs do not show."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refdiff.oracle import Spec, cases
from refdiff.oracle.cases.fixed import Case, small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.diagnosis import diagnose
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.mistakes import CATALOGUE
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate, quantised
from refdiff.oracle.rounding.evaluation_order import DRAWS, HELD_OUT, MEMBERS
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.rounding.rounded_layers import rounded_mistakes
from tests.oracle.diagnosis.outputs import kernel, named

MISTAKES = {m.name: m for m in CATALOGUE}
VECTOR = np.linspace(-0.5, 0.7, 16)


def _with_lambda(case: Case, value: float, order: int = 0) -> np.ndarray:
    """The output of a kernel that has this λ, stored in its type, without any mistake of the catalogue."""
    recipe = Recipe(case.dtype)
    inputs = {name: x for name, x in quantised(case.inputs, recipe).items() if name not in VECTORS}
    inputs["lambda_full"] = round_to(np.asarray(value), case.dtype)
    return evaluate(case.spec.replace(lambda_form="given"), inputs, recipe, HELD_OUT[order])["out"]


def test_lambda_of_a_mistake_is_stored_as_any_other() -> None:
    for order in MEMBERS[0], MEMBERS[4]:
        layer = rounded_mistakes(Recipe("bfloat16"), order, [MISTAKES["start_alone"]]).diff_lambda
        found = float(layer(VECTOR, VECTOR, VECTOR, VECTOR, 0.6192834728526788))
        assert found == float(round_to(np.asarray(0.6192834728526788), "bfloat16"))
    layer = rounded_mistakes(Recipe("float32"), DRAWS[0], [MISTAKES["no_exponentials"]]).diff_lambda
    drawn = {float(layer(VECTOR, VECTOR, -VECTOR, VECTOR, 0.2)) for _ in range(5)}
    assert len(drawn) > 1, "the roundings of its sums are drawn at random"
    assert max(abs(x - 2 * VECTOR @ VECTOR - 0.2) for x in drawn) < 1e-6


@pytest.mark.parametrize("layer", [3, 4])
@pytest.mark.parametrize("profile", [pytest.param("natural", marks=pytest.mark.slow), "discriminating"])
def test_lambda_init_alone_has_its_name(profile: str, layer: int) -> None:
    spec = small_spec("hf_diffllama").replace(layer=layer)
    case = cases(profile, layer, spec=spec, dtype="bfloat16")[1]
    out = _with_lambda(case, 0.8 - 0.6 * math.exp(-0.3 * layer))
    found = diagnose(out, spec, case.inputs, recipe="bfloat16", max_deviations=1)
    assert found.name == "start_alone", str(found)
    assert found.candidates[0].residual < 1.5


def test_lambda_without_exponentials_has_its_name_in_float32() -> None:
    case = cases("discriminating", 2, spec=small_spec("hf_diffllama"))[1]
    q1, k1, q2, k2 = (case.inputs[name].astype(np.float64) for name in VECTORS)
    out = _with_lambda(case, float(q1 @ k1 - q2 @ k2) + 0.8 - 0.6 * math.exp(-0.3 * case.spec.layer))
    found = diagnose(out, case.spec, case.inputs, recipe="float32", max_deviations=1)
    assert found.name == "no_exponentials", str(found)


@pytest.mark.parametrize(("queries", "keys", "window"), [(9, 6, None), (8, 8, 5)])
@pytest.mark.parametrize(("by", "name"), [(1, "one_future_token_seen"), (-1, "tokens_that_do_not_see_themselves")])
def test_a_triangle_that_is_off_by_one(queries: int, keys: int, window: int | None, by: int, name: str) -> None:
    """With more queries than keys, and with a window, as well."""
    spec = small_spec("hf_diffllama").replace(window=window)
    inputs = draw(spec, Structure(1, queries, keys), "discriminating", 3)
    t, s = np.arange(queries)[:, None], np.arange(keys)[None]
    see = (s <= t + keys - queries + by) & (np.abs(s - t - keys + queries) < (window or queries + keys))
    recipe = Recipe("float32")
    wrong = evaluate(
        spec.replace(causal="none", window=None), {**quantised(inputs, recipe), "mask": see}, recipe, HELD_OUT[1]
    )
    found = diagnose(wrong["out"], spec, inputs, recipe="float32", max_deviations=1)
    assert found.name == name, str(found)


@pytest.mark.slow
def test_three_mistakes_are_several() -> None:
    case = cases("discriminating", 5, spec=small_spec("hf_diffllama"), dtype="float32")[1]
    three = [named("hf_diffllama", n) for n in ("layer_norm", "keys_crossed", "neighboring_values_joined")]
    wrong = kernel(case, three)
    assert wrong is not None
    found = diagnose(wrong, case.spec, case.inputs, recipe="float32")
    assert found.status == "none fits"
    assert all(len(c.deviations) == 1 for c in found.candidates), str(found)
    if found.candidates:
        assert found.candidates[0].deviations[0].name in {d.name for d in three}


def test_a_number_is_fitted_to_all_inputs() -> None:
    """ε shows in tiny values alone; the first of two inputs has none."""
    spec = small_spec("hf_diffllama")
    both = [cases("natural", 1, spec=spec)[1], cases("tiny_values", 1, spec=spec)[1]]
    recipe = Recipe("float32")
    outs = [
        evaluate(spec.replace(norm_eps=3.3e-7), quantised(c.inputs, recipe), recipe, HELD_OUT[0])["out"] for c in both
    ]
    found = diagnose(outs, spec, [c.inputs for c in both], recipe="float32", max_deviations=1)
    fit = next(f for f in found.fits if f.parameter == "norm_eps")
    assert fit.fits
    assert fit.value == pytest.approx(3.3e-7, rel=0.02)


@pytest.mark.slow
def test_what_inputs_do_not_show_explains_nothing() -> None:
    """Without padding, padding seen is no mistake: it is not listed, though it leaves the rows that are right."""
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=2)
    inputs = draw(spec, Structure(1, 40, 40), "natural", 3)
    recipe = Recipe("float32")
    right = evaluate(spec, quantised(inputs, recipe), recipe, HELD_OUT[0])["out"]
    found = diagnose(right * (1 + 3e-6), spec, inputs, recipe="float32", max_deviations=1)
    assert "padding_seen" not in {d.name for c in found.candidates for d in c.deviations}, str(found)


@pytest.mark.parametrize(
    ("name", "profile", "place"),
    [
        ("attention_over_heads", "discriminating", 1),
        ("mask_inverted", "discriminating", 1),
        ("queries_and_keys_normed", "discriminating", 1),
        ("only_half_of_the_width_turns", "discriminating", 1),
        ("last_page_lost", "serving", 0),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_mistakes_of_published_kernels_have_their_names(name: str, profile: str, place: int, dtype: str) -> None:
    case = cases(profile, 7, spec=small_spec("hf_diffllama"), dtype=dtype)[place]
    wrong = kernel(case, [named("hf_diffllama", name)])
    assert wrong is not None
    found = diagnose(wrong, case.spec, case.inputs, recipe=dtype, max_deviations=1)
    assert found.name == name, str(found)
