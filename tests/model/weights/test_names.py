"""Names, shapes, nesting."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.model.weights.names import (
    ARCHITECTURES,
    HEAD_PARAMETERS,
    count_parameters,
    flatten,
    nest,
    parameter_shapes,
    stored_name,
    with_prefix,
)
from tests.model.models import VARIANT_NAMES
from tests.model.variants import expected
from tests.model.weights.files import shapes_of, tiny_config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_shapes_and_order_by_hand(architecture: str) -> None:
    assert list(parameter_shapes(tiny_config(), architecture).items()) == list(shapes_of(architecture).items())


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_parameters_of_each_variant_besides_its_projections(variant: str) -> None:
    declared, sizes = expected(variant), {"d": 10, "2d": 20, "H": 12, "H/2": 6, "K": 4, "D": 14}
    own = {name: tuple(sizes[axis] for axis in shape) for name, shape in declared.SHAPES.items()}
    queries = 120 * declared.QUERIES
    unequal = {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 10, "hidden_size": 14}
    shapes = parameter_shapes(tiny_config(variant=variant, **unequal), "DiffLlamaModel")
    attention = {name.split("self_attn.")[1]: shape for name, shape in shapes.items() if "self_attn" in name}
    projections = {
        "q_proj.weight": (queries, 14), "k_proj.weight": (40, 14), "v_proj.weight": (40, 14),
        "o_proj.weight": (14, 120),
    }  # fmt: skip
    told = (
        f"{variant}: `parameters` in refdiff/model/variants/{variant}.py, or SHAPES in the file of tests/model/variants"
    )
    assert list(attention.items()) == [*own.items(), *projections.items()], told
    others = {name for name in shapes_of("DiffLlamaModel") if "self_attn" not in name}
    assert {name for name in shapes if "self_attn" not in name} == others


def test_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"got 'LlamaForCausalLM', expected one of DiffLlamaModel, "):
        parameter_shapes(tiny_config(), "LlamaForCausalLM")


@pytest.mark.parametrize("prefix", ["", "model.", "transformer."])
@pytest.mark.parametrize("stored", ["", "model.", "transformer."])
def test_any_class_finds_the_base_model_of_any_other(stored: str, prefix: str) -> None:
    for name in ("embed_tokens.weight", "layers.0.mlp.up_proj.weight", "norm.weight"):
        assert with_prefix(stored + name, prefix) == prefix + name


def test_head_parameters_are_those_that_no_base_model_has() -> None:
    config = tiny_config(tie_word_embeddings=False)
    names = {name for kind in ARCHITECTURES[1:] for name in parameter_shapes(config, kind)}
    assert {name for name in names if not name.startswith(("model.", "transformer."))} == HEAD_PARAMETERS


def test_count() -> None:
    assert count_parameters([(2, 3), (5,), ()]) == 12
    # 7·6 + 4·2 + (8 + 4 + 4)·6 + 6·8 + 3·5·6 + 3·6, and 7·6 for the head
    assert count_parameters(shapes_of("DiffLlamaForCausalLM").values()) == 42 + 8 + 96 + 48 + 90 + 18 + 42


def test_nest_makes_lists_of_numbered_levels() -> None:
    flat = {"model.layers.0.w": 1, "model.layers.1.w": 2, "model.norm.weight": 3, "head": 4}
    assert nest(flat) == {"model": {"layers": [{"w": 1}, {"w": 2}], "norm": {"weight": 3}}, "head": 4}
    # not numbered from 0 on: no list, so that nothing moves
    assert nest({"a.1.w": 1, "a.2.w": 2}) == {"a": {"1": {"w": 1}, "2": {"w": 2}}}
    assert nest({"a.00": 1}) == {"a": {"00": 1}}


def test_nest_sorts_eleven_layers_by_number() -> None:
    assert nest({f"layers.{i}": i for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}) == {"layers": list(range(11))}


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


def test_unilms_name_of_the_last_projection() -> None:
    for stored in ("model.layers.3.self_attn.out_proj.weight", "layers.3.self_attn.out_proj.weight"):
        assert with_prefix(stored, "model.") == "model.layers.3.self_attn.o_proj.weight"
    assert stored_name("model.layers.3.self_attn.o_proj.weight", "paper") == "model.layers.3.self_attn.out_proj.weight"
    assert stored_name("layers.3.self_attn.o_proj.bias", "paper") == "layers.3.self_attn.out_proj.bias"
    assert stored_name("layers.3.self_attn.q_proj.weight", "paper") == "layers.3.self_attn.q_proj.weight"
    for variant in set(VARIANT_NAMES) - {"paper"}:
        assert stored_name("layers.3.self_attn.o_proj.weight", variant) == "layers.3.self_attn.o_proj.weight"
    assert with_prefix("model.layers.3.mlp.out_proj.weight", "model.") == "model.layers.3.mlp.out_proj.weight"
