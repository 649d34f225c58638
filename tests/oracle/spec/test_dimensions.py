"""Dimensions of a spec, read off its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle.spec.dimensions import dimensions
from refdiff.oracle.spec.presets import PRESETS
from tests.layers.inputs import says
from tests.oracle.example_inputs import draw, small

NAMES = ("query_heads", "key_heads", "head_dim")


@pytest.mark.parametrize("layer", [False, True], ids=["core", "layer"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset: str, layer: bool) -> None:
    spec = small(preset)
    given = {"head_dim": 6} if preset == "attention" and layer else {}  # of which no array speaks there
    read = dimensions({**PRESETS[preset], **given}, draw(spec, layer=layer))
    assert {**given, **read} == {name: getattr(spec, name) for name in NAMES}


@pytest.mark.parametrize("layer", [False, True], ids=["core", "layer"])
@pytest.mark.parametrize("preset", PRESETS)
def test_another_width_of_values(preset: str, layer: bool) -> None:
    spec = small(preset, v_head_dim=7)
    read = dimensions({**PRESETS[preset], "head_dim": 6}, draw(spec, layer=layer))
    assert read == {
        "query_heads": 20 if preset in ("gda", "motif3") else 12,
        "key_heads": spec.key_heads,
        "v_head_dim": 7,
    }


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"lambda_form": "given", "norm_weight": True}, "norm_weight"),
        ({"lambda_form": "given", "norm_weight": True, "values": "single"}, "norm_weight"),
        ({"lambda_form": "given", "head_dim": 6}, ""),
        ({"lambda_form": "given", "query_heads": 12}, ""),
        ({"lambda_form": "sigmoid", "ratio": 2}, "lambda_proj.weight"),
    ],
)
def test_the_width_of_a_head_of_a_layer(fields: dict[str, Any], kept: str) -> None:
    spec = small("hf_diffllama", **{"key_heads": 4, **{k: v for k, v in fields.items() if k not in NAMES}})
    read = dimensions(fields, draw(spec, layer=True))
    assert {**read, **fields} == {**fields, **{name: getattr(spec, name) for name in NAMES}}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"q": np.ones(3)}, "q has shape (3,), but must be (B, H, T, d)"),
        ({"q": np.ones((1, 2, 3, 4))}, "the inputs lack k (B, K, S, d)"),
        ({"q": np.ones((1, 2, 3, 4)), "k_pages": np.ones(3)}, "k_pages has shape (3,), but must be (P, K, p, d)"),
        ({"x": np.ones(3)}, "the inputs lack q_proj.weight (rows, D)"),
        (
            {"x": 0, "q_proj.weight": np.ones((9, 2)), "k_proj.weight": np.ones((4, 2)), "lambda_q1": np.ones(4)},
            "q_proj.weight has 9 rows, which are no whole number of heads of width 4",
        ),
        (
            {"x": 0, "q_proj.weight": np.ones((8, 2)), "k_proj.weight": np.ones((4, 2))},
            "the arrays of this layer do not say how wide a head is: give head_dim",
        ),
    ],
)
def test_arrays_that_say_too_little(inputs: dict[str, Any], message: str) -> None:
    with says(ValueError, message):
        dimensions({}, inputs)


def test_values_of_no_width() -> None:
    assert dimensions(dict.fromkeys(NAMES, 2), {"v": np.ones(3)}) == {}
    assert dimensions(dict.fromkeys(NAMES, 2), {"v": np.ones((1, 3, 5, 7))}) == {}  # three heads for two


def test_only_what_is_missing() -> None:
    spec = small("hf_diffllama")
    assert dimensions(dict.fromkeys(NAMES, 1), {}) == {}
    assert dimensions({"query_heads": 12}, draw(spec, layer=True)) == {"key_heads": 4, "head_dim": 6}
