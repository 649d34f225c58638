"""Names, shapes, nesting."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.model.weights.names import (
    ARCHITECTURES,
    flatten,
    nest,
    parameter_shapes,
)
from tests.model.weights.files import shapes_of, tiny_config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_shapes_and_order_by_hand(architecture: str) -> None:
    assert list(parameter_shapes(tiny_config(), architecture).items()) == list(shapes_of(architecture).items())


VECTORS = dict.fromkeys(("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"), (2,))


@pytest.mark.parametrize(
    ("wiring", "own", "queries"),
    [
        ("hf", VECTORS, 8),
        ("paper", {**VECTORS, "subln.weight": (4,)}, 8),
        ("v2", {"lambda_proj.weight": (4, 6)}, 16),
        ("none", {}, 8),
    ],
)
def test_what_each_wiring_has_beside_its_projections(wiring: str, own: dict[str, Any], queries: int) -> None:
    shapes = parameter_shapes(tiny_config(wiring=wiring), "DiffLlamaModel")
    attention = {name.split("self_attn.")[1]: shape for name, shape in shapes.items() if "self_attn" in name}
    projections = {
        "q_proj.weight": (queries, 6), "k_proj.weight": (4, 6), "v_proj.weight": (4, 6), "o_proj.weight": (6, 8),
    }  # fmt: skip
    assert list(attention.items()) == [*own.items(), *projections.items()]
    others = {name for name in shapes_of("DiffLlamaModel") if "self_attn" not in name}
    assert {name for name in shapes if "self_attn" not in name} == others


def test_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"got 'LlamaForCausalLM', expected one of DiffLlamaModel, "):
        parameter_shapes(tiny_config(), "LlamaForCausalLM")


def test_nest_makes_lists_of_numbered_levels() -> None:
    flat = {"model.layers.0.w": 1, "model.layers.1.w": 2, "model.norm.weight": 3, "head": 4}
    assert nest(flat) == {"model": {"layers": [{"w": 1}, {"w": 2}], "norm": {"weight": 3}}, "head": 4}
    # not numbered from 0 on: no list, so that nothing moves
    assert nest({"a.1.w": 1, "a.2.w": 2}) == {"a": {"1": {"w": 1}, "2": {"w": 2}}}
    assert nest({"a.00": 1}) == {"a": {"00": 1}}


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("a.b.c", "a.b")])
def test_nest_refuses_a_name_inside_a_value(names: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="value"):
        nest(dict.fromkeys(names, 0))


_TREES = st.recursive(
    st.integers(),
    lambda children: (
        st.lists(children, min_size=1, max_size=3)
        | st.dictionaries(st.text("abcxyz_", min_size=1, max_size=3), children, min_size=1, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcxyz_", min_size=1, max_size=3), _TREES, min_size=1, max_size=3))
def test_nest_undoes_flatten(tree: dict[str, Any]) -> None:
    assert nest(flatten(tree)) == tree
