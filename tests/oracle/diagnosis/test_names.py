"""Names of wrong outputs and gradients; no wrong name is given, and none for what the inputs do not show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Case, Spec, budget, cases, diagnose
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.diagnosis.ranking import AMBIGUOUS, NO_DEVIATION, NONE_FITS, UNIQUE, Ranking
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES
from refdiff.oracle.mistakes.kernel import rounded_mistakes
from refdiff.oracle.mistakes.listed import EVERY, RARE_DEVIATIONS
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import quantise
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.truth.backward import backward
from tests.oracle.diagnosis.outputs import by_tiles, kernel, output_of, rounded

HF = small_spec("hf_diffllama")
LAST: dict[str, Any] = {"partial_rotary_factor": 0.25, "rotary_at": "last"}
NORM = {"norm": "layer", "norm_weight": True, "norm_bias": True, "norm_per_head": True}
BY_NAME = {d.name: d for d in (*RARE_DEVIATIONS, *EVERY)}


@pytest.mark.parametrize(
    ("name", "preset", "fields", "profile", "place"),
    [
        ("other_end_rotated", "hf_diffllama", LAST, "discriminating", 0),
        ("norm_of_head_0", "hf_diffllama", NORM, "discriminating", 0),
        ("gate_read_as_tokens_first", "ms_v1", {"gate": "sigmoid"}, "discriminating", 0),
        ("sinks_by_key_head", "attention", {"query_heads": 6, "key_heads": 2, "sinks": True}, "discriminating", 0),
        ("cu_seqlens_q_for_keys", "hf_diffllama", {}, "layout", 0),
        ("newest_token_not_written", "hf_diffllama", {}, "serving", 0),
        ("accumulator_not_rescaled_by_tiles_of_16", "hf_diffllama", {}, "tiles", 0),
    ],
)
def test_a_deviation_has_its_name(name: str, preset: str, fields: Any, profile: str, place: int) -> None:
    case = cases(profile, 7, spec=small_spec(preset).replace(**fields), dtype="bfloat16")[place]
    found = diagnose(kernel(case, [BY_NAME[name]]), case.spec, case.inputs, recipe="bfloat16", max_deviations=1)
    assert found.name == name, str(found)
    assert preset != "attention" or "λ" not in str(found)


def test_reads_beyond_a_sequence_are_ambiguous_if_all_give_nan() -> None:
    """Unused slots are NaN, and so is every row, whichever of them is read."""
    names = {"last_page_not_masked", "lengths_one_too_large", "block_table_off_by_one"}
    case = cases("serving", 7, spec=HF)[0]
    out = kernel(case, [BY_NAME["lengths_one_too_large"]])
    found = diagnose(out, case.spec, case.inputs, recipe="float32", max_deviations=1)
    assert {c.name for c in found.findings} == names, str(found)


@pytest.mark.parametrize("first_is_padded", [True, False])
def test_the_padding_of_the_first_sequence_for_all(first_is_padded: bool) -> None:
    """If no key of sequence 0 is padding, a kernel that ignores the mask gives the same output."""
    inputs = draw(HF, Structure(queries=6, keys=9), "discriminating", 7)
    inputs["key_mask"] = np.arange(9) >= np.asarray([[first_is_padded], [2]])
    out = rounded(HF, {**inputs, "key_mask": inputs["key_mask"][[0, 0]]})["out"]
    found = diagnose(out, HF, inputs, recipe="float32", max_deviations=1)
    expected = {"padding_of_sequence_0"} if first_is_padded else {"no_padding_mask", "padding_of_sequence_0"}
    assert {c.name for c in found.findings} == expected, str(found)


@pytest.mark.parametrize(
    ("fields", "name", "value", "dtype"),
    [
        ({"scale": 0.11}, "scale", 0.11, "bfloat16"),
        ({"scale": 0.126}, "scale", 0.126, "float32"),
        ({"layer": 9}, "layer", 9, "bfloat16"),
        ({"window": 128}, "window", 128, "bfloat16"),
        ({"norm_eps": 0.02}, "norm_eps", 0.02, "bfloat16"),
        ({"rope_theta": 3000.0}, "rope_theta", 3000.0, "bfloat16"),
    ],
)
def test_a_number_is_fitted_to_a_sample_of_queries(fields: dict[str, Any], name: str, value: float, dtype: str) -> None:
    """Also one that is between the truth and the next point of its grid."""
    spec = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=64, layer=3)
    inputs = draw(spec, Structure(1, 256, 256), "natural", 3, dtype)
    wrong = rounded(spec.replace(**fields), inputs, dtype)["out"]
    found = diagnose(wrong, spec, inputs, recipe=dtype, max_deviations=1)
    assert found.name is not None, found
    assert [h.name for h in found.findings[0].hypotheses] == [name]
    assert found.findings[0].values[0] == pytest.approx(value, rel=0.02)


@pytest.mark.slow
def test_three_mistakes_are_several() -> None:
    case = cases("discriminating", 5, spec=HF)[1]
    three = ("layer_norm", "keys_swapped", "interleaved_value_heads")
    found = diagnose(output_of(case, *three), case.spec, case.inputs, recipe="float32")
    assert found.status == "none fits"
    assert all(len(c.hypotheses) == 1 for c in found.findings), str(found)
    if found.findings:
        assert found.findings[0].hypotheses[0].name in three


@pytest.mark.parametrize("name", ["accumulator", "denominator", "sums"])
def test_an_online_softmax_that_forgets_to_rescale_is_named(name: str) -> None:
    """Written as a kernel is, a tile after another."""
    inputs = draw(HF, Structure(1, 40, 40), "natural", 3)
    out = round_to(by_tiles(HF, inputs, 8, name), "float32")
    found = diagnose(out, HF, inputs, recipe="float32", max_deviations=1)
    assert found.name == f"{name}_not_rescaled_by_tiles_of_8", str(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padded_keys_that_are_seen_say_the_tile(dtype: str) -> None:
    """Keys of a tile of 32, of which 24 are there: the others, of zeros, are not masked."""
    spec = HF.replace(causal="none")
    inputs = draw(spec, Structure(2, 24, 24), "natural", 3, dtype)
    more = {name: np.pad(inputs[name], ((0, 0), (0, 0), (0, 8), (0, 0))) for name in ("k", "v")}
    more |= {"q_positions": np.arange(24)[None], "k_positions": np.arange(32)[None]}
    wrong = rounded(spec, {**inputs, **more}, dtype)["out"]
    found = diagnose(wrong, spec, inputs, recipe=dtype, max_deviations=1)
    assert found.name == "keys padded to tiles of 16 or 32", str(found)


@pytest.mark.parametrize("preset", ["hf_diffllama", "attention"])
def test_an_output_of_zeros_has_no_unique_name(preset: str) -> None:
    """Many pairs of deviations give zeros, and so does an output that the kernel does not write."""
    case = cases("discriminating", 3, spec=small_spec(preset))[1]
    found = diagnose(np.zeros_like(case.dout), case.spec, case.inputs, recipe="float32")
    assert (found.status, found.findings) == (NONE_FITS, ())
    (line,) = found.where
    assert line.startswith("it is exactly zero everywhere, where the truth is not")


def test_unwritten_memory_with_a_signaling_nan_gives_no_warning() -> None:
    case = cases("natural", 3, spec=HF)[0]
    out = output_of(case).astype(np.float32)
    out.view(np.uint32)[1, 2, 3] = 0x7FA00000
    found = diagnose(out, case.spec, case.inputs, recipe="float32")
    assert found.where[0] == "it is NaN in token 3 of head 2 of sequence 1, where the truth is finite"


# Wrong gradients of right outputs: names of derivatives, factors, parts of sums, and several mistakes

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
