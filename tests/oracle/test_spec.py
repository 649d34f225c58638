"""A spec: its presets, what follows from its fields, and that it can be written down."""

from __future__ import annotations

import dataclasses
import json

import pytest

from refdiff.oracle.presets import PRESETS
from refdiff.oracle.spec import Spec
from tests.oracle.inputs import small


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
    with pytest.raises(ValueError, match="no preset is called 'diff_v3': there are hf_diffllama, ms_v1"):
        Spec.preset("diff_v3", query_heads=4, key_heads=4, head_dim=8)
