"""Presets are what their sources compute: unilm's own files, and the layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle.presets import PRESETS
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth import truth
from tests.golden import unilm

FILES = {
    "ms_v1": ("multihead_flashdiff_1", "multihead_flashdiff_2"),
    "ms_v1_naive": ("multihead_diffattn",),
    "diff_v2": ("multihead_flashdiffv2",),
}


def layer_inputs(case: unilm.Case, spec: Spec) -> dict[str, Any]:
    """unilm's input and weights under the names of the oracle's dictionary."""
    names = {"out_proj.weight": "o_proj.weight", "subln.weight": "norm_weight"}
    return {"x": case.x, **{names.get(name, name): w for name, w in case.weights.items()}}


@pytest.mark.parametrize("size", ["mha", "gqa2", "gqa3"])
@pytest.mark.parametrize("name", FILES)
def test_equals_the_files_of_unilm(name: str, size: str) -> None:
    case = unilm.case(f"{'v2' if name == 'diff_v2' else 'v1'}-{size}")
    heads, key_heads = case.options["num_heads"], case.key_heads
    q = case.weights["q_proj.weight"].shape[0]
    key = key_heads if name == "diff_v2" else 2 * key_heads
    spec = Spec.preset(
        name,
        query_heads=2 * heads,
        key_heads=key,
        head_dim=q // (2 * heads),
        layer=case.options.get("depth", 0),
        rope_theta=unilm.THETA,
    )
    out = truth(spec, layer_inputs(case, spec), want=("out",)).out
    for file in FILES[name]:
        expected = case.outputs[file]
        assert np.abs(out - expected).max() <= unilm.SAME * np.abs(expected).max()


def test_each_preset_is_another_function_or_says_so() -> None:
    specs = {name: Spec.preset(name, query_heads=20, key_heads=2, head_dim=4) for name in PRESETS if name != "timm"}
    assert len(set(specs.values())) == len(specs)


def test_presets_have_known_fields_alone() -> None:
    fields = set(Spec(query_heads=2, key_heads=2, head_dim=2).to_dict())
    assert all(set(preset) <= fields for preset in PRESETS.values())
