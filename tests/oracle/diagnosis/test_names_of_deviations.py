"""Deviations that a kernel has, each with its name: of the presets, of choices beyond them, of published kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec, cases, diagnose
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.inputs.sequences import gather
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes.listed import EVERY
from refdiff.oracle.mistakes.rare import RARE_DEVIATIONS
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import quantise
from refdiff.oracle.spec.presets import YARN
from refdiff.oracle.strategies import Structure, draw
from tests.oracle.diagnosis.outputs import by_weights, kernel, named, natural, rounded

LAST = {"partial_rotary_factor": 0.25, "rotary_at": "last"}
QK = {"qk_norm": "rms", "qk_norm_weight": True}
NORM = {"norm": "layer", "norm_weight": True, "norm_bias": True, "norm_per_head": True}
PLAIN = {"query_heads": 6, "key_heads": 2, "head_dim": 8, "v_head_dim": 12, "sinks": True, "softcap": 3.0,
         "rope": "halves"}  # fmt: skip
MADE: list[tuple[str, dict[str, Any], list[str]]] = [
    ("hf_diffllama", LAST, ["whole_head_rotated", "other_end_rotated", "frequencies_for_whole_head_dim",
                            "yarn_frequencies", "other_rope_pairing"]),
    ("hf_diffllama", {**LAST, "rope_parameters": YARN, "scale": 0.4},
     ["rope_type_ignored", "linear_scaling_for_yarn", "yarn_factor_on_cos_and_sin",
      "scores_scaled_by_sqrt_d"]),
    ("hf_diffllama", {"rope_parameters": {"frequencies": [1.0 / (1 + i) for i in range(8)]}}, ["default_frequencies"]),
    ("hf_diffllama", QK, ["no_qk_norm", "no_qk_norm_weights",
                          "qk_layer_norm", "qk_norm_after_rope", "qk_norm_weights_swapped"]),
    ("hf_diffllama", {**QK, "qk_norm": "layer", "qk_norm_at": "after_rope"},
     ["qk_rms_norm", "qk_norm_before_rope"]),
    ("hf_diffllama", NORM, ["rms_norm_for_layer_norm", "no_norm_bias", "norm_of_head_0"]),
    ("hf_diffllama", {"lambda_per_head": True}, ["lambda_of_head_0"]),
    ("ms_v1", {"gate": "sigmoid"}, ["no_gate", "silu_gate", "linear_gate", "gate_read_as_tokens_first"]),
    ("ms_v1", {"gate": "silu"}, ["sigmoid_gate"]),
    ("diff_v2", {}, ["lambda_read_as_heads_first"]),
    # in which ports of Motif-3 differ within attention, and mistakes near to these
    ("motif3", {}, ["window_one_too_short", "window_one_too_long", "yarn_frequencies", "other_end_rotated",
                    "other_rope_pairing", "all_signals_first", "no_gate", "noise_head_first",
                    "v2_no_sigmoid"]),
    ("motif3", {"window": None, "rope_parameters": YARN, "scale": 2.0 / 4.0},
     ["rope_type_ignored", "yarn_factor_on_cos_and_sin", "scores_scaled_by_sqrt_d", "extra_window"]),
    ("attention", PLAIN, ["no_sinks", "sinks_scaled", "sinks_in_base_2", "sinks_set_to_zero", "sinks_by_key_head",
                          "softcap_before_scale", "scores_scaled_by_sqrt_v_dim", "key_heads_tiled",
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
            "attention_over_heads", "causal_mask_inverted", "extra_qk_norm", "softmax_of_difference",
            "difference_before_softmax", "lambda_on_both_maps", "bfloat16_bits_read_as_integers",
            "half_of_head_rotated", "interleaved_keys_only", "value_heads_duplicated",
            "keys_and_values_swapped", "query_positions_one_low", "query_angle_negated", "not_causal_in_first_map",
            "values_tiled",
        )),
        *(pytest.param(name, "discriminating", 1, marks=pytest.mark.slow) for name in (
            "query_positions_one_high", "key_angle_negated",
        )),
        ("padding_visible_in_first_map", "discriminating", 0),
        pytest.param("padding_visible_in_second_map", "discriminating", 0, marks=pytest.mark.slow),
        ("sequences_not_separated", "layout", 0),
        ("pages_in_memory_order", "serving", 0),
        ("last_page_lost", "serving", 0),
        ("last_page_read_from_previous", "serving", 0),
        ("first_key_from_previous_page", "serving", 0),
        *((name, "serving", 0) for name in (
            "keys_rotated_twice", "block_table_of_sequence_0", "lengths_one_too_small",
            "length_of_longest_sequence", "newest_token_not_written",
        )),
        ("cu_seqlens_q_for_keys", "layout", 0),
        ("accumulator_not_rescaled_by_tiles_of_16", "tiles", 0),
        ("denominator_not_rescaled_by_tiles_of_32", "tiles", 0),
        ("sums_not_rescaled_by_tiles_of_64", "tiles", 1),
        ("accumulator_not_rescaled_in_first_map_by_tiles_of_16", "tiles", 0),
        pytest.param("accumulator_not_rescaled_in_second_map_by_tiles_of_32", "tiles", 0, marks=pytest.mark.slow),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_mistakes_of_published_kernels_have_their_names(name: str, profile: str, place: int, dtype: str) -> None:
    case = cases(profile, 7, spec=small_spec("hf_diffllama"), dtype=dtype)[place]
    wrong = kernel(case, [next((d for d in RARE_DEVIATIONS if d.name == name), None) or named("hf_diffllama", name)])
    found = diagnose(wrong, case.spec, case.inputs, recipe=dtype, max_deviations=1)
    assert found.name == name, str(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [9, 13])
def test_a_window_that_starts_at_the_edge_of_a_page(window: int, dtype: str) -> None:
    """A kernel that skips pages before the window, and does not mask what is before it in its first page."""
    spec = small_spec("hf_diffllama").replace(window=window)
    inputs = draw(spec, Structure(pages=((1, 27), (1, 6), (1, 22))), "natural", 3, dtype)
    p, each = inputs["k_pages"].shape[2], []
    for n, length in enumerate(inputs["lengths"].tolist()):
        k, v = (gather(inputs[f"{x}_pages"], inputs["block_table"][n], length) for x in "kv")
        first = max(0, length - window) // p * p
        one = {**inputs, "q": inputs["q"][n : n + 1], "k": k, "v": v, "key_mask": np.arange(length)[None] >= first}
        dense = {name: x for name, x in one.items() if "pages" not in name and name not in ("block_table", "lengths")}
        each.append(rounded(spec.replace(window=None), dense, dtype)["out"])
    found = diagnose(np.concatenate(each), spec, inputs, recipe=dtype, max_deviations=1)
    assert found.name == "window_from_page_edge", str(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("given", "used", "name"),
    [
        ({"bias"}, lambda x: {**x, "bias": 0 * x["bias"]}, "bias_ignored"),
        ({"bias"}, lambda x: {**x, "bias": x["bias"] * np.log(2)}, "bias_in_base_2"),
        ({"bias"}, lambda x: {**x, "bias": x["bias"] / 4}, "bias_scaled"),
        ({"mask"}, lambda x: {n: y for n, y in x.items() if n != "mask"}, "mask_ignored"),
        ({"q_positions"}, lambda x: {n: y for n, y in x.items() if "positions" not in n}, "positions_ignored"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_of_inputs_that_few_kernels_have(given: set[str], used: Any, name: str, dtype: str) -> None:
    spec = small_spec("hf_diffllama").replace(head_dim=16)
    case = next(c for c in cases("tiles", 1, spec=spec, dtype=dtype) if given <= set(c.inputs))
    out = rounded(spec, used(case.inputs), dtype)["out"]
    found = diagnose(out, spec, case.inputs, recipe=dtype, max_deviations=1)
    assert found.name == name, str(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("sinks_in_first_map", (1, 0)),
        ("sinks_in_second_map", (0, 1)),
        ("sinks_counted_2_times", (2, 2)),
        ("sinks_counted_4_times", (4, 4)),
    ],
)
def test_of_sinks(name: str, counts: tuple[int, int], dtype: str) -> None:
    """The maps are made here: with the sink among the keys of one of them, or in the sum of each part of the keys."""
    case = cases("discriminating", 5, spec=small_spec("ms_v1").replace(sinks=True), dtype=dtype)[1]
    exact = as_float64(case.spec, quantise(case.inputs, Recipe.of(dtype)))

    def maps(*of_scores: np.ndarray) -> list[np.ndarray]:  # the last key of each map is its sink
        weights = [np.exp(z - z.max(axis=-1, keepdims=True)) for z in of_scores]
        sums = [w[..., :-1].sum(axis=-1, keepdims=True) + n * w[..., -1:] for w, n in zip(weights, counts, strict=True)]
        return [w / x for w, x in zip(weights, sums, strict=True)]

    out = round_to(by_weights(case.spec, exact, maps), dtype)
    found = diagnose(out, case.spec, case.inputs, recipe=dtype, max_deviations=1)
    assert found.name == name, str(found)


@pytest.mark.slow
def test_a_name_whose_own_kernels_overflow_fits_nothing() -> None:
    """The bits of bfloat16 are too large for float16: kernels that read them have no result to compare with."""
    spec = Spec.preset("ms_v1", query_heads=8, key_heads=4, head_dim=16, layer=3)
    case = cases("natural", 1, spec=spec, dtype="float16", batch=1, queries=24, keys=24)[0]
    out = np.abs(rounded(spec, case.inputs, "float16")["out"]) * np.sign(case.inputs["norm_weight"])
    found = diagnose(out, spec, case.inputs, recipe="float16", max_deviations=1)
    assert found.name is None, str(found)


@pytest.mark.parametrize("name", ["last_page_not_masked", "lengths_one_too_large", "block_table_off_by_one"])
def test_reads_beyond_a_sequence_are_ambiguous_if_all_give_nan(name: str) -> None:
    """Unused slots are NaN, and so is every row, whichever of them is read."""
    case = cases("serving", 7, spec=small_spec("hf_diffllama"))[0]
    (wrong,) = (d for d in (*RARE_DEVIATIONS, *EVERY) if d.name == name)
    found = diagnose(kernel(case, [wrong]), case.spec, case.inputs, recipe="float32", max_deviations=1)
    assert {c.name for c in found.findings} == {
        "last_page_not_masked", "lengths_one_too_large", "block_table_off_by_one"
    }, str(found)  # fmt: skip


def test_a_window_of_one_map_has_its_name_where_some_inputs_do_not_show_it() -> None:
    """A case with as many keys as the window, and the first tokens of a large case, do not."""
    spec, name = small_spec("diff_v2").replace(window=60), "no_window_in_second_map"
    both = [natural(spec, Structure(2, n, n), "float32") for n in (6, 120)]
    (wrong,) = (d for d in RARE_DEVIATIONS if d.name == name)
    outs = [kernel(case, [wrong]) for case in both]
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


def test_key_heads_tiled_before_they_pair_have_their_name() -> None:
    """Query head i on key head i mod K, as where a product broadcasts over heads by repeating the whole."""
    case = cases("discriminating", 7, spec=small_spec("hf_diffllama"))[1]
    n = case.spec.query_heads // case.spec.key_heads
    tiled = {name: np.concatenate([case.inputs[name]] * n, axis=1) for name in ("k", "v")}
    out = rounded(case.spec.replace(key_heads=case.spec.query_heads), {**case.inputs, **tiled})["out"]
    found = diagnose(out, case.spec, case.inputs, recipe="float32", max_deviations=1)
    assert found.name == "keys_tiled_before_pairing", str(found)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("q_proj_transposed", ("q_proj.weight", "q_proj.weight")),
        ("o_proj_transposed", ("o_proj.weight", "o_proj.weight")),
        ("keys_and_values_swapped", ("k_proj.weight", "v_proj.weight")),
    ],
)
def test_wrong_weights_of_a_layer_have_their_name(name: str, weights: tuple[str, str]) -> None:
    spec = small_spec("hf_diffllama")
    inputs = draw(spec, Structure(queries=6, keys=6, hidden=spec.query_heads * spec.head_dim), "discriminating", 7)
    one, other = weights
    swapped = {one: inputs[other], other: inputs[one]} if one != other else {one: inputs[one].T}
    found = diagnose(rounded(spec, {**inputs, **swapped})["out"], spec, inputs, recipe="float32", max_deviations=1)
    assert found.name == name, str(found)
