"""A spec: its presets, what follows from its fields, and that it can be written down."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.presets import PRESETS
from tests.oracle.example_inputs import small


def test_what_follows_from_the_fields() -> None:
    hf = Spec(query_heads=12, key_heads=4, head_dim=6)
    assert (hf.heads, hf.key_groups, hf.value_heads, hf.value_dim, hf.out_dim) == (6, 2, 4, 6, 12)
    paper = Spec.preset("ms_v1", query_heads=12, key_heads=4, head_dim=6)
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


def test_fields_override_a_preset() -> None:
    assert small("ms_v1", norm_eps=1e-6).norm_eps == 1e-6
    assert small("ms_v1").replace(rope="none") == small("ms_v1", rope="none")


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small("ms_v1").layer = 3  # type: ignore[misc]


def test_an_unknown_preset_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no preset is called 'diff_v3', did you mean 'diff_v2'\? there are hf_diff"):
        Spec.preset("diff_v3", query_heads=4, key_heads=4, head_dim=8)
    with pytest.raises(ValueError, match="called 'paper'; the preset of that variant is 'ms_v1'; there are hf_"):
        Spec.preset("paper", query_heads=4, key_heads=4, head_dim=8)


DIMS: dict[str, Any] = {"query_heads": 12, "key_heads": 4, "head_dim": 6}


def test_a_preset_with_changes_as_json_has_it() -> None:
    given = json.loads('{"preset": "ms_v1", "query_heads": 12, "key_heads": 4, "head_dim": 6, "window": 3, "scale": 1}')
    spec = Spec.of(given)
    assert spec == Spec.preset("ms_v1", **DIMS, window=3, scale=1)
    assert Spec.of(json.loads(json.dumps(spec.to_dict()))) == spec
    assert Spec.of(DIMS) == Spec(**DIMS)


def test_sizes_of_numpy_are_numbers() -> None:
    sizes = {name: np.int64(n) for name, n in DIMS.items()}
    spec = Spec(**sizes, window=np.int32(3), scale=np.float32(0.5), norm_weight=np.bool_(True))
    assert spec == Spec(**DIMS, window=3, scale=0.5, norm_weight=True)
    kinds = {type(spec.query_heads), type(spec.window), type(spec.scale), type(spec.norm_weight)}
    assert kinds == {int, float, bool}
    assert json.loads(json.dumps(spec.to_dict()))["head_dim"] == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"windw": 3}, "'windw' is no field of a Spec, did you mean 'window'. there are preset, query_heads"),
        ({"xyz": 3}, "'xyz' is no field of a Spec: there are preset"),
        ({"preset": "hf_difllama"}, "no preset is called 'hf_difllama', did you mean 'hf_diffllama'"),
        ({"preset": ["timm"]}, "no preset is called .'timm'.*there are"),
    ],
)
def test_of_what_is_no_spec(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec.of({**DIMS, **fields})


def test_missing_dimensions_are_named() -> None:
    with pytest.raises(ValueError, match="the spec lacks query_heads, head_dim: whole numbers of 1 or more"):
        Spec.of({"preset": "timm", "key_heads": 4})


def test_plain_attention_has_a_head_for_each_query_head_and_no_pairs() -> None:
    spec = Spec.preset("attention", query_heads=6, key_heads=3, head_dim=5, v_head_dim=7)
    assert (spec.heads, spec.key_groups, spec.value_heads, spec.value_dim, spec.out_dim) == (6, 3, 3, 7, 7)
    assert spec.lse_names == ("lse",)
    assert spec.replace(key_heads=6, v_head_dim=None).out_dim == 5
    with pytest.raises(ValueError, match="query_heads is 7 and key_heads 3, but each key head serves the same number"):
        spec.replace(query_heads=7)
    with pytest.raises(ValueError, match=r"values is 'halves', but of plain attention .* it must be 'single'"):
        spec.replace(values="halves")
    with pytest.raises(ValueError, match="v_head_dim is 0, but must be a whole number of 1 or more, or None"):
        spec.replace(v_head_dim=0)
    with pytest.raises(ValueError, match="sinks is 1, but must be True or False"):
        spec.replace(sinks=1)
