"""A spec: its presets, what follows from its fields, that it can be written down, and what no kernel can compute."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, truth
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.spec.validation import CHOICES
from tests.golden import unilm
from tests.oracle.example_inputs import small

DIMS: dict[str, Any] = {"query_heads": 12, "key_heads": 4, "head_dim": 6}


def test_sizes_derived_from_the_fields() -> None:
    hf = Spec(**DIMS)
    assert (hf.heads, hf.key_groups, hf.value_heads, hf.value_dim, hf.out_dim) == (6, 2, 4, 6, 12)
    paper = Spec.preset("ms_v1", **DIMS)
    assert (paper.heads, paper.key_groups, paper.value_heads, paper.value_dim, paper.out_dim) == (6, 2, 2, 12, 12)
    v2 = Spec.preset("diff_v2", query_heads=12, key_heads=3, head_dim=6)
    assert (v2.heads, v2.key_groups, v2.value_heads, v2.value_dim, v2.out_dim) == (6, 3, 3, 6, 6)
    grouped = Spec.preset("gda", query_heads=20, key_heads=4, head_dim=6)
    assert (grouped.heads, grouped.key_groups, grouped.value_heads, grouped.out_dim) == (16, 2, 4, 12)


@pytest.mark.parametrize("name", PRESETS)
def test_can_be_written_down_and_read_again(name: str) -> None:
    spec = small(name)
    assert Spec(**json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(small(name))


@pytest.mark.parametrize("name", CHOICES)
def test_a_word_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got 'no', expected one of {CHOICES[name][0]!r}"):
        Spec(**{**DIMS, name: "no"})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"windw": 3}, "'windw' is no field of a Spec, did you mean 'window'.$"),
        ({"xyz": 3}, "'xyz' is no field of a Spec: there are preset"),
        ({"preset": "hf_difllama"}, "no preset is called 'hf_difllama', did you mean 'hf_diffllama'"),
        ({"preset": "paper"}, "called 'paper'; the preset of that variant is 'ms_v1'; there are hf_"),
        ({"preset": ["timm"]}, "no preset is called .'timm'.*there are"),
        ({"query_heads": None, "head_dim": None}, "the spec lacks query_heads, head_dim: whole numbers of 1 or more"),
        ({"query_heads": 0}, "query_heads: got 0, expected a whole number of 1 or more"),
        ({"layer": -1}, "layer: got -1"),
        ({"scale": 0.0}, "scale: got 0.0"),
        ({"layer": "3"}, "layer: got '3', expected a whole number, counted from 0; leave the quotes out"),
        ({"window": 2.5}, "window: got 2.5"),
        ({"norm_weight": "yes"}, "norm_weight: got 'yes'"),
        ({"lambda_base": "constant", "lambda_init": float("nan")}, "lambda_init: got nan"),
        ({"lambda_init": 0.5}, "lambda_base is 'depth' and lambda_init 0.5"),
        ({"query_heads": 5, "ratio": 1}, r"query_heads: got 5, expected a multiple of 2 \(both maps are counted\)"),
        ({"key_heads": 3}, "key_heads is 3, .*must be even .with keys='shared'"),
        ({"key_heads": 8}, "12 query heads are 6 pairs, which 4 pairs of keys cannot share evenly"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor: got 1.5"),
        ({"partial_rotary_factor": 0.3}, "rotates no pair of the 6 dimensions"),
        ({"rope_parameters": 3}, "rope_parameters: got 3"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type 'dynamic', whose frequencies depend on the length"),
        ({"rope_parameters": {"rope_theta": 3.0}}, "rope_theta, which is a field of the spec"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' needs the parameter"),
        ({"head_dim": 5}, "head_dim is 5, but RoPE rotates dimensions in pairs"),
        ({"norm": "none", "norm_weight": True}, "norm_weight is True, but there is no norm"),
        ({"qk_norm_weight": True}, "qk_norm_weight is True, but there is no norm of q and k"),
        ({"qk_norm_eps": 0.0}, "qk_norm_eps: got 0.0"),
        ({"values": "single", "head_dim": 3, "rope": "none", "norm_over": "half_head"}, "a head is 3 wide"),
        ({"keys": "shared", "key_heads": 3, "pairing": "interleaved"}, "shared keys have one value head"),
        ({"keys": "shared", "key_heads": 3, "values": "single"}, "pairing is 'halves'.*diff-attn-v2"),
        ({"ratio": 2, "gqa": "repeat_then_pair"}, "ratio is 2: gqa must be 'pair_then_group'"),
        ({"gqa": "repeat_then_pair", "group_order": "tiled"}, "gqa is 'repeat_then_pair': keys must be 'own'"),
    ],
)
def test_impossible(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Spec.of({name: x for name, x in {**DIMS, **fields}.items() if x is not None})


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


def test_timm_is_ms_v1_without_rope_and_mask() -> None:
    dims = {"query_heads": 8, "key_heads": 8, "head_dim": 6}
    assert Spec.preset("ms_v1", **dims, rope="none", causal="none") == Spec.preset("timm", **dims)
