"""Mistakes in choices beyond the presets have names of their own."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff.oracle import Spec, cases, diagnose
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.deviations import EVERY
from refdiff.oracle.spec.presets import YARN
from tests.oracle.diagnosis.outputs import kernel

LAST = {"partial_rotary_factor": 0.25, "rotary_at": "last"}
QK = {"qk_norm": "rms", "qk_norm_weight": True}
NORM = {"norm": "layer", "norm_weight": True, "norm_bias": True, "norm_per_head": True}
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
]  # fmt: skip


MOTIF3 = small_spec("motif3")
FULL = MOTIF3.replace(window=None, rope_parameters=YARN, scale=2.0 / 4.0)
DISPUTES: list[tuple[Spec, str]] = [
    *((MOTIF3, name) for name in (
        "window_one_less", "window_one_more", "frequencies_of_yarn", "the_other_end_turns", "the_other_pairs_turn",
        "all_signals_first", "noise_before_its_signals", "gate_left_out", "v2_without_the_sigmoid",
    )),
    *((FULL, name) for name in (
        "rope_type_left_out", "scale_of_yarn_in_the_rotation", "scores_scaled_by_the_root_of_d", "a_sliding_window",
    )),
]  # fmt: skip
"""In which ports of Motif-3 differ within attention, and mistakes near to these."""
BY_NAME = {d.name: d for d in EVERY}


def check_name(spec: Spec, name: str) -> None:
    case = cases("discriminating", 5, spec=spec)[0]
    wrong = kernel(case, [BY_NAME[name]])
    found = diagnose(wrong, spec, case.inputs, recipe="float32", max_deviations=1)
    assert found.name == name, str(found)


@pytest.mark.parametrize(
    ("preset", "fields", "name"),
    [(preset, fields, name) for preset, fields, names in MADE for name in names],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_each_has_its_name(preset: str, fields: dict[str, Any], name: str) -> None:
    check_name(small_spec(preset).replace(**fields), name)


@pytest.mark.parametrize(("spec", "name"), DISPUTES, ids=lambda x: x if isinstance(x, str) else "")
def test_ports_of_motif3(spec: Spec, name: str) -> None:
    check_name(spec, name)
