"""Deviations that a kernel has, each with its name: of the presets, of choices beyond them, of published kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import cases, diagnose
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.deviations.listed import EVERY
from refdiff.oracle.deviations.rare import RARE_DEVIATIONS
from refdiff.oracle.spec.presets import YARN
from refdiff.oracle.strategies import Structure, draw
from tests.oracle.diagnosis.outputs import kernel, named, natural, rounded

LAST = {"partial_rotary_factor": 0.25, "rotary_at": "last"}
QK = {"qk_norm": "rms", "qk_norm_weight": True}
NORM = {"norm": "layer", "norm_weight": True, "norm_bias": True, "norm_per_head": True}
PLAIN = {"query_heads": 6, "key_heads": 2, "head_dim": 8, "v_head_dim": 12, "sinks": True, "softcap": 3.0,
         "rope": "halves"}  # fmt: skip
MADE: list[tuple[str, dict[str, Any], list[str]]] = [
    ("hf_diffllama", LAST, ["the_whole_width_turns", "the_other_end_turns", "frequencies_of_the_whole_width",
                            "frequencies_of_yarn", "the_other_pairs_turn"]),
    ("hf_diffllama", {**LAST, "rope_parameters": YARN, "scale": 0.4},
     ["rope_type_left_out", "every_frequency_divided", "scale_of_yarn_in_the_rotation",
      "scores_scaled_by_the_root_of_d"]),
    ("hf_diffllama", {"rope_parameters": {"frequencies": [1.0 / (1 + i) for i in range(8)]}}, ["plain_frequencies"]),
    ("hf_diffllama", QK, ["queries_and_keys_not_normed", "weights_of_the_qk_norm_left_out",
                          "qk_norm_takes_the_mean_away", "qk_norm_after_rope", "weights_of_the_qk_norm_exchanged"]),
    ("hf_diffllama", {**QK, "qk_norm": "layer", "qk_norm_at": "after_rope"},
     ["qk_norm_leaves_the_mean", "qk_norm_before_rope"]),
    ("hf_diffllama", NORM, ["mean_left_in_the_norm", "bias_of_the_norm_left_out", "norm_of_the_first_head"]),
    ("hf_diffllama", {"lambda_per_head": True}, ["lambda_of_the_first_head"]),
    ("ms_v1", {"gate": "sigmoid"}, ["gate_left_out", "gate_of_silu", "gate_not_squashed", "gate_read_by_token"]),
    ("ms_v1", {"gate": "silu"}, ["gate_of_sigmoid"]),
    ("diff_v2", {}, ["lambda_read_by_head"]),
    # in which ports of Motif-3 differ within attention, and mistakes near to these
    ("motif3", {}, ["window_one_less", "window_one_more", "frequencies_of_yarn", "the_other_end_turns",
                    "the_other_pairs_turn", "all_signals_first", "gate_left_out", "noise_before_its_signals",
                    "v2_without_the_sigmoid"]),
    ("motif3", {"window": None, "rope_parameters": YARN, "scale": 2.0 / 4.0},
     ["rope_type_left_out", "scale_of_yarn_in_the_rotation", "scores_scaled_by_the_root_of_d", "a_sliding_window"]),
    ("attention", PLAIN, ["sinks_left_out", "sinks_scaled", "sinks_to_base_2", "sinks_of_zero", "sinks_of_key_heads",
                          "softcap_before_the_scale", "scale_of_the_width_of_values", "key_heads_tiled",
                          "scores_not_scaled"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "fields", "name"),
    [(preset, fields, name) for preset, fields, names in MADE for name in names],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_each_has_its_name(preset: str, fields: dict[str, Any], name: str) -> None:
    case = cases("discriminating", 5, spec=small_spec(preset).replace(**fields))[0]
    found = diagnose(kernel(case, [named(preset, name)]), case.spec, case.inputs, recipe="float32", max_deviations=1)
    assert found.name in (name, *named(preset, name).aliases), str(found)
    assert preset != "attention" or "λ" not in str(found)


@pytest.mark.subjects
@pytest.mark.parametrize(
    ("name", "profile", "place"),
    [
        *((name, "discriminating", 1) for name in (
            "attention_over_heads", "mask_inverted", "queries_and_keys_normed", "softmax_of_the_difference",
            "subtracted_before_the_softmax", "lambda_on_both", "bfloat16_bits_read_as_integers",
            "only_half_of_the_width_turns", "neighboring_keys_on_halved_queries", "values_joined_with_themselves",
            "keys_and_values_exchanged", "query_positions_one_low", "query_positions_one_high",
            "queries_turned_the_other_way", "keys_turned_the_other_way", "not_causal_in_the_first_map",
        )),
        *((f"padding_seen_in_the_{which}_map", "discriminating", 0) for which in ("first", "second")),
        ("sequences_seen_together", "layout", 0),
        ("pages_as_they_lie", "serving", 0),
        ("last_page_lost", "serving", 0),
        ("last_page_is_the_one_before", "serving", 0),
        ("first_key_of_a_page_from_the_page_before", "serving", 0),
        *((name, "serving", 0) for name in (
            "keys_rotated_twice", "block_table_of_the_first_sequence", "lengths_one_less",
            "length_of_the_longest_sequence",
        )),
        ("keys_counted_as_queries", "layout", 0),
        ("accumulator_not_rescaled_by_tiles_of_16", "tiles", 0),
        ("denominator_not_rescaled_by_tiles_of_32", "tiles", 0),
        ("sums_not_rescaled_by_tiles_of_64", "tiles", 1),
        ("accumulator_not_rescaled_in_the_first_map_by_tiles_of_16", "tiles", 0),
        ("accumulator_not_rescaled_in_the_second_map_by_tiles_of_32", "tiles", 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_mistakes_of_published_kernels_have_their_names(name: str, profile: str, place: int, dtype: str) -> None:
    case = cases(profile, 7, spec=small_spec("hf_diffllama"), dtype=dtype)[place]
    wrong = kernel(case, [next((d for d in RARE_DEVIATIONS if d.name == name), None) or named("hf_diffllama", name)])
    found = diagnose(wrong, case.spec, case.inputs, recipe=dtype, max_deviations=1)
    assert found.name == name, str(found)


@pytest.mark.parametrize("name", ["last_page_whole", "lengths_one_more", "block_table_one_entry_later"])
def test_reads_beyond_a_sequence_are_not_told_apart_by_nan(name: str) -> None:
    """Unused slots are NaN, and so is every row, whichever of them is read."""
    case = cases("serving", 7, spec=small_spec("hf_diffllama"))[0]
    (wrong,) = (d for d in (*RARE_DEVIATIONS, *EVERY) if d.name == name)
    found = diagnose(kernel(case, [wrong]), case.spec, case.inputs, recipe="float32", max_deviations=1)
    assert {c.name for c in found.candidates} == {
        "last_page_whole", "lengths_one_more", "block_table_one_entry_later"
    }, str(found)  # fmt: skip


def test_a_window_of_one_map_has_its_name_where_some_inputs_do_not_show_it() -> None:
    """A case with as many keys as the window, and the first tokens of a large case, do not."""
    spec, name = small_spec("diff_v2").replace(window=60), "window_left_out_in_the_second_map"
    both = [natural(spec, Structure(2, n, n), "float32") for n in (6, 120)]
    (wrong,) = (d for d in RARE_DEVIATIONS if d.name == name)
    outs = [kernel(case, [wrong]) for case in both]
    found = diagnose(outs, spec, [case.inputs for case in both], recipe="float32", max_deviations=1)
    assert found.name == name, str(found)
    assert "triangle_at_the_top_left" in found.notes[0]


@pytest.mark.parametrize("first_is_padded", [True, False])
def test_the_padding_of_the_first_sequence_for_all(first_is_padded: bool) -> None:
    """If no key of sequence 0 is padding, a kernel that ignores the mask gives the same output."""
    spec = small_spec("hf_diffllama")
    inputs = draw(spec, Structure(queries=6, keys=9), "discriminating", 7)
    inputs["key_mask"] = np.arange(9) >= np.asarray([[first_is_padded], [2]])
    out = rounded(spec, {**inputs, "key_mask": inputs["key_mask"][[0, 0]]})["out"]
    found = diagnose(out, spec, inputs, recipe="float32", max_deviations=1)
    names = [c.name for c in found.candidates]
    assert names == ["padding_of_the_first_sequence"] if first_is_padded else {*names} == {
        "no_padding_mask", "padding_of_the_first_sequence"
    }, str(found)  # fmt: skip


def test_key_heads_tiled_before_they_pair_have_their_name() -> None:
    """Query head i on key head i mod K, as where a product broadcasts over heads by repeating the whole."""
    case = cases("discriminating", 7, spec=small_spec("hf_diffllama"))[1]
    n = case.spec.query_heads // case.spec.key_heads
    tiled = {name: np.concatenate([case.inputs[name]] * n, axis=1) for name in ("k", "v")}
    out = rounded(case.spec.replace(key_heads=case.spec.query_heads), {**case.inputs, **tiled})["out"]
    found = diagnose(out, case.spec, case.inputs, recipe="float32", max_deviations=1)
    assert found.name == "keys_tiled_before_they_pair", str(found)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("q_proj_transposed", ("q_proj.weight", "q_proj.weight")),
        ("o_proj_transposed", ("o_proj.weight", "o_proj.weight")),
        ("keys_and_values_exchanged", ("k_proj.weight", "v_proj.weight")),
    ],
)
def test_wrong_weights_of_a_layer_have_their_name(name: str, weights: tuple[str, str]) -> None:
    spec = small_spec("hf_diffllama")
    inputs = draw(spec, Structure(queries=6, keys=6, hidden=spec.query_heads * spec.head_dim), "discriminating", 7)
    one, other = weights
    swapped = {one: inputs[other], other: inputs[one]} if one != other else {one: inputs[one].T}
    found = diagnose(rounded(spec, {**inputs, **swapped})["out"], spec, inputs, recipe="float32", max_deviations=1)
    assert found.name == name, str(found)
