"""The answers of `diagnose`: what they say, and that nothing gets a name that is not its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import refdiff
from refdiff.oracle import Ranking, Recipe, Spec, budget, cases, diagnose, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.diagnosis.diagnose import NEARLY_RIGHT
from refdiff.oracle.diagnosis.ranking import AMBIGUOUS, NO_DEVIATION, NONE_FITS, UNIQUE
from refdiff.oracle.rounding import round_to
from refdiff.oracle.thresholds import THRESHOLDS
from tests.oracle.diagnosis.outputs import natural, output_of, rounded

HF, MS = small_spec("hf_diffllama"), small_spec("ms_v1")


def ask(dtype: str, *names: str, most: int = 1, place: int = 0) -> Ranking:
    """Diagnose a kernel with the deviations of these names."""
    case = cases("discriminating", 5, spec=HF, dtype=dtype)[place]
    return diagnose(output_of(case, *names), HF, case.inputs, recipe=dtype, max_deviations=most)


@pytest.mark.parametrize(
    ("preset", "dtype", "name"), [("diff_v2", "float32", "v2_no_sigmoid"), ("hf_diffllama", "float16", "maps_swapped")]
)
def test_a_name_whose_roundings_hide_the_error_is_no_answer(preset: str, dtype: str, name: str) -> None:
    """Bits read as whole numbers give scores that overflow, or outputs off by 10,000: anything is within that."""
    case = natural(small_spec(preset), Structure(batch=1, queries=4, keys=9), dtype, "cancellation", seed=1)
    found = diagnose(output_of(case, name), case.spec, case.inputs, recipe=dtype, max_deviations=1)
    assert found.name == name, found


def test_a_name_that_noise_hides_must_explain_the_error() -> None:
    """λ near 1 in bfloat16: correct kernels miss every row by a quarter, and pass as several mistakes."""
    case = natural(HF, Structure(batch=1, queries=40, keys=44), "bfloat16", "cancellation", seed=3)
    found = diagnose(output_of(case, "no_rope", order=3), HF, case.inputs, recipe="bfloat16", max_deviations=1)
    assert (found.status, found.name) == (UNIQUE, "no_rope"), found


def test_an_output_that_is_nearly_right_has_no_name() -> None:
    """Errors a little above those of right kernels: it passes with all that its inputs do not show."""
    case = cases("discriminating", 5, spec=HF, dtype="bfloat16")[0]
    known = budget(HF, case.inputs, "bfloat16")
    right = output_of(case)
    errors = np.random.default_rng(0).choice([-1.7, 1.7], right.shape) * known.rows["out"][..., None]
    found = diagnose(right + errors, HF, case.inputs, recipe="bfloat16")
    assert found.status == NONE_FITS
    assert NEARLY_RIGHT in found.notes
    assert not any(c.fits for c in found.findings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_output_has_no_deviation(dtype: str) -> None:
    found = ask(dtype)
    assert (found.status, found.findings, found.name) == (NO_DEVIATION, (), None)


def test_errors_of_other_tensors_are_noted_if_the_output_is_correct() -> None:
    """A log-sum-exp to base 2, and a backward pass without the triangle."""
    case = cases("discriminating", 5, spec=HF, dtype="float32")[1]
    right = truth(HF, case.inputs, dout=case.dout)
    given = {"out": right.out, "lse1": right.lse1 / np.log(2), "lse2": right.lse2, "dv": right.grads["v"]}
    found = diagnose(given, HF, case.inputs, recipe="float32", dout=case.dout)
    assert found.status == NONE_FITS
    (note,) = found.notes
    assert note.startswith("the output is right, lse1 is not: it is to base 2, the spec's is e")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("lse2", "lse2 is wrong and lse1 is right: look at the scores and the mask of the second map"),
        ("", "lse1 and lse2 are right: look at what comes after the scores: values, the weighted sums and their "
             "rescaling or merging over tiles, λ, the difference and the norm"),
    ],
)  # fmt: skip
def test_log_sum_exps_tell_on_which_side_of_the_softmax_it_is(wrong: str, said: str) -> None:
    case = cases("discriminating", 5, spec=HF, dtype="float32")[1]
    right = truth(HF, case.inputs)
    out = np.asarray(right.out) * np.random.default_rng(1).normal(size=right.out.shape)
    given = {"out": out, "lse1": right.lse1, "lse2": right.lse2}
    given |= {wrong: 1.5 * given[wrong]} if wrong else {}
    found = diagnose(given, HF, case.inputs, recipe="float32", max_deviations=1)
    assert found.status == NONE_FITS
    assert found.where[0] == said
    both = {**given, "lse1": 2 * right.lse1, "lse2": 2 * right.lse2}
    assert not diagnose(both, HF, case.inputs, recipe="float32", max_deviations=1).where
    assert found.notes[0].startswith("nothing in the catalogue, alone, explains more than "), found


def test_without_an_output_the_rest_is_judged() -> None:
    case = cases("discriminating", 5, spec=HF, dtype="float32")[1]
    right = truth(HF, case.inputs, dout=case.dout)
    assert diagnose({"lse1": right.lse1}, HF, case.inputs, recipe="float32").status == NO_DEVIATION
    found = diagnose({"dv": 2 * right.grads["v"]}, HF, case.inputs, recipe="float32", dout=case.dout)
    assert (found.status, found.name) == (UNIQUE, "factor of dv = 2")
    assert found.notes[0].startswith("dv is wrong: ")


def test_the_answers_that_the_docstring_and_the_guide_show() -> None:
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=3)
    inputs = draw(spec, Structure(2, 70, 70), "natural", 0, "bfloat16")
    out = truth(spec, inputs).out.copy()
    out[1, 3, 32:64] = 0
    guide = Path(refdiff.__file__).parent / "oracle" / "guides" / "triton.md"
    number = round_to(truth(spec.replace(scale=0.2), inputs).out, "bfloat16")
    pages = [diagnose.__doc__ or "", guide.read_text(encoding="utf-8")]
    for wrong, texts in ((out, pages), (number, pages[:1])):
        answer = " ".join(str(diagnose(wrong, spec, inputs, recipe="bfloat16")).split())
        assert all(answer in " ".join(text.split()) for text in texts), answer
    first, second, third = str(ask("bfloat16", "layer_norm")).splitlines()[:3]
    shown = (diagnose.__doc__ or "").splitlines()
    assert first == "unique: layer_norm"
    assert any(line.strip().startswith(second.strip().partition("residual")[0]) for line in shown)
    assert third.strip() in [line.strip() for line in shown]


@pytest.mark.parametrize("names", [("masked_rows_nan",), ("masked_rows_nan", "layer_norm")])
def test_nan_that_a_deviation_gives_has_its_name(names: tuple[str, ...]) -> None:
    """Alone, and in a pair, which is looked for then: one of the two gives NaN in these places."""
    found = ask("float32", *names, most=2, place=2)
    assert found.status in (UNIQUE, AMBIGUOUS)
    assert set(names) in [{d.name for d in c.hypotheses} for c in found.findings if c.fits]


def test_mistakes_that_inputs_cannot_tell_apart_are_ambiguous() -> None:
    """With one key λ (A₁ − A₂) V is zero, and so is an output that is multiplied by 1 − λ_init with λ_init = 1."""
    case = cases("degenerate", spec=MS, dtype="bfloat16")[0]
    out = output_of(case, "lambda_on_both_maps")
    assert not out.any()
    found = diagnose(out, MS, case.inputs, recipe="bfloat16", max_deviations=1)
    assert (found.status, found.name) == (AMBIGUOUS, None)
    assert {"lambda_on_both_maps", "lambda_init_is_1"} <= {c.name for c in found.findings}


def test_arguments() -> None:
    case = cases("discriminating", 5, spec=HF)[0]
    out = np.zeros((2, 6, 9, 32))
    with pytest.raises(ValueError, match="max_deviations: got 3, expected 1 or 2"):
        diagnose(out, HF, case.inputs, recipe="float32", max_deviations=3)
    with pytest.raises(ValueError, match=r"out: got shape \(2, 9, 6, 32\)"):
        diagnose(np.swapaxes(out, 1, 2), HF, case.inputs, recipe="float32")
    with pytest.raises(ValueError, match="nothing to judge: give an array, or a mapping with out"):
        diagnose({}, HF, case.inputs, recipe="float32")
    with pytest.raises(TypeError):
        diagnose({"out": "no"}, HF, case.inputs, recipe="float32")


@pytest.mark.slow
@pytest.mark.parametrize(("said", "does"), [("float32", "tf32"), ("float16", "bfloat16")])
def test_a_right_kernel_that_rounds_more_than_its_recipe_says(said: str, does: str) -> None:
    inputs = draw(HF, Structure(1, 24, 24), "natural", 3)
    found = diagnose(rounded(HF, inputs, does)["out"], HF, inputs, recipe=said)
    assert found.status == NONE_FITS
    assert found.notes[0] == (
        f"it passes with recipe={does!r}: does your kernel round there, where {said!r} does not say so?"
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_right_kernel_that_rounds_scaled_q_as_its_recipe_does_not_say(dtype: str) -> None:
    """As MLX on a CPU: only one row has scores so large that it shows."""
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=3, rope="none")
    inputs = cases("extreme", 0, spec=spec, dtype=dtype)[1].inputs
    out = rounded(spec, inputs, Recipe(dtype, scaled_q=dtype))["out"]
    found = diagnose(out, spec, inputs, recipe=dtype, max_deviations=1)
    assert (found.status, found.findings) == (NONE_FITS, ())
    assert found.where[0].startswith("it is wrong only in token 13 of head 2")
    assert found.notes[0].startswith(f"it passes with scaled_q={dtype!r}: does your kernel round there, ")


def test_candidates_that_explain_most_of_the_error_are_shown() -> None:
    """Of two mistakes where one is looked for; and what explains little is not."""
    found = ask("bfloat16", "layer_norm", "no_output_scale")
    assert found.status == NONE_FITS
    assert "no_output_scale" in [c.name for c in found.findings]
    assert all(c.explains >= THRESHOLDS.explained for c in found.findings)
    assert "does not fit, explains " in str(found)
    assert found.notes[0].startswith("the closest explains ")


@pytest.mark.parametrize(
    "names",
    [
        ("layer_norm", "interleaved_value_heads"),
        *(pytest.param(pair, marks=pytest.mark.slow) for pair in (
            ("maps_swapped", "no_output_scale"), ("interleaved_pairs", "rope_angle_negated"),
            ("scores_scaled_by_sqrt_2d", "lambda_init_only"), ("no_causal_mask", "keys_swapped"))),
    ],
)  # fmt: skip
def test_pairs_are_named(names: tuple[str, ...]) -> None:
    found = ask("bfloat16", *names, most=2)
    answers = [set(name.split(" + ")) for f in found.findings if f.fits for name in (f.name, *f.also)]
    assert set(names) in answers, found


def test_the_finite_part_of_an_output_with_nan_is_explained() -> None:
    case = cases("discriminating", 5, spec=HF)[0]
    out = output_of(case, "layer_norm")
    out[0, 2, 5:] = np.nan
    found = diagnose(out, HF, case.inputs, recipe="float32", max_deviations=1)
    assert found.status == NONE_FITS
    assert found.findings[0].name == "layer_norm"
    assert found.findings[0].explains > 0.99
