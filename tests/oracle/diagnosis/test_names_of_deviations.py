"""Names of deviations that neither the museum nor the selftest tries: a sample of each group of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import cases, diagnose
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.mistakes.listed import EVERY, RARE_DEVIATIONS
from refdiff.oracle.spec.presets import YARN
from tests.oracle.diagnosis.outputs import kernel, natural, rounded

LAST: dict[str, Any] = {"partial_rotary_factor": 0.25, "rotary_at": "last"}
QK = {"qk_norm": "rms", "qk_norm_weight": True}
NORM = {"norm": "layer", "norm_weight": True, "norm_bias": True, "norm_per_head": True}
BY_NAME = {d.name: d for d in (*RARE_DEVIATIONS, *EVERY)}


@pytest.mark.parametrize(
    ("name", "preset", "fields", "profile", "place"),
    [
        ("other_end_rotated", "hf_diffllama", LAST, "discriminating", 0),
        ("linear_scaling_for_yarn", "hf_diffllama", {**LAST, "rope_parameters": YARN, "scale": 0.4}, "natural", 0),
        ("other_qk_norm_order", "hf_diffllama", QK, "discriminating", 0),
        ("norm_of_head_0", "hf_diffllama", NORM, "discriminating", 0),
        ("gate_read_as_tokens_first", "ms_v1", {"gate": "sigmoid"}, "discriminating", 0),
        ("noise_head_first", "motif3", {}, "discriminating", 0),
        ("sinks_by_key_head", "attention", {"query_heads": 6, "key_heads": 2, "sinks": True}, "discriminating", 0),
        ("no_causal_mask_in_first_map", "hf_diffllama", {}, "discriminating", 1),
        ("no_padding_mask_in_first_map", "hf_diffllama", {}, "discriminating", 0),
        ("key_angle_negated", "hf_diffllama", {}, "discriminating", 1),
        ("cu_seqlens_q_for_keys", "hf_diffllama", {}, "layout", 0),
        ("length_of_longest_sequence", "hf_diffllama", {}, "serving", 0),
        ("newest_token_not_written", "hf_diffllama", {}, "serving", 0),
        ("sums_not_rescaled_by_tiles_of_64", "hf_diffllama", {}, "tiles", 1),
        ("accumulator_not_rescaled_in_first_map_by_tiles_of_16", "hf_diffllama", {}, "tiles", 0),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_has_its_name(name: str, preset: str, fields: dict[str, Any], profile: str, place: int, dtype: str) -> None:
    case = cases(profile, 7, spec=small_spec(preset).replace(**fields), dtype=dtype)[place]
    found = diagnose(kernel(case, [BY_NAME[name]]), case.spec, case.inputs, recipe=dtype, max_deviations=1)
    assert found.name == name, str(found)
    assert preset != "attention" or "λ" not in str(found)


@pytest.mark.parametrize("name", ["last_page_not_masked", "lengths_one_too_large", "block_table_off_by_one"])
def test_reads_beyond_a_sequence_are_ambiguous_if_all_give_nan(name: str) -> None:
    """Unused slots are NaN, and so is every row, whichever of them is read."""
    case = cases("serving", 7, spec=small_spec("hf_diffllama"))[0]
    found = diagnose(kernel(case, [BY_NAME[name]]), case.spec, case.inputs, recipe="float32", max_deviations=1)
    assert {c.name for c in found.findings} == {
        "last_page_not_masked", "lengths_one_too_large", "block_table_off_by_one"
    }, str(found)  # fmt: skip


def test_a_window_of_one_map_has_its_name_where_some_inputs_do_not_show_it() -> None:
    """A case with as many keys as the window, and the first tokens of a large case, do not."""
    spec, name = small_spec("diff_v2").replace(window=60), "no_window_in_second_map"
    both = [natural(spec, Structure(2, n, n), "float32") for n in (6, 120)]
    outs = [kernel(case, [BY_NAME[name]]) for case in both]
    found = diagnose(outs, spec, [case.inputs for case in both], recipe="float32", max_deviations=1)
    assert found.name == name, str(found)


@pytest.mark.parametrize("first_is_padded", [True, False])
def test_the_padding_of_the_first_sequence_for_all(first_is_padded: bool) -> None:
    """If no key of sequence 0 is padding, a kernel that ignores the mask gives the same output."""
    spec = small_spec("hf_diffllama")
    inputs = draw(spec, Structure(queries=6, keys=9), "discriminating", 7)
    inputs["key_mask"] = np.arange(9) >= np.asarray([[first_is_padded], [2]])
    out = rounded(spec, {**inputs, "key_mask": inputs["key_mask"][[0, 0]]})["out"]
    found = diagnose(out, spec, inputs, recipe="float32", max_deviations=1)
    names = [c.name for c in found.findings]
    assert names == ["padding_of_sequence_0"] if first_is_padded else {*names} == {
        "no_padding_mask", "padding_of_sequence_0"
    }, str(found)  # fmt: skip
