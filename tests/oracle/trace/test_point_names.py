"""What others call the points."""

from __future__ import annotations

import pytest

from refdiff.oracle import trace
from refdiff.oracle.trace.point_names import canonical_names
from tests.model.models import ids, small_model
from tests.oracle.trace.test_trace import SPEC, spec_inputs

POINTS = list(trace(small_model(), ids(0, 1, 3)))
A = "model.layers.1.self_attn."


@pytest.mark.parametrize(
    ("name", "path"),
    [
        # transformers, and below another prefix or none
        ("model.layers.1.self_attn.q_proj", A + "q_proj"),
        ("DiffLlamaForCausalLM.model.layers.1.self_attn.groupnorm", A + "groupnorm"),
        ("lm_head", "lm_head"),
        # unilm
        ("decoder.layers.1.self_attn.subln", A + "groupnorm"),
        ("decoder.layers.1.self_attn_layer_norm", "model.layers.1.input_layernorm"),
        # timm
        ("blocks.1.attn.sub_norm", A + "groupnorm"),
        ("blocks.1.norm2", "model.layers.1.post_attention_layernorm"),
        # vLLM
        ("model.layers.1.self_attn.attn12", A + "attn12"),
        # Llama's own
        ("tok_embeddings", "model.embed_tokens"),
        ("output", "lm_head"),
        # a second time
        (A + "scores1[1]", A + "scores1[1]"),
    ],
)
def test_names(name: str, path: str) -> None:
    assert canonical_names([name], POINTS, {}) == {name: path}


@pytest.mark.parametrize(
    ("name", "path"),
    [("scores1", "scores1"), ("attn.sub_norm", "groupnorm"), ("layers.7.self_attn.lse2", "lse2"),
     ("lse1[1]", "lse1[1]"), ("subln[1]", "groupnorm[1]"), ("layers.7.self_attn.lse2[1]", "lse2[1]"),
     ("out", "out")],
)  # fmt: skip
def test_names_of_the_attention_alone(name: str, path: str) -> None:
    points = list(trace(SPEC, spec_inputs()))
    found = canonical_names([name], points, {})[name]
    assert found.removeprefix("self_attn.") == path


def test_own_names() -> None:
    table = {"mine": A + "diff", "blocks.0.attn.x": "layers.0.self_attn.attn1"}
    assert canonical_names([*table, "norm1"], POINTS, table) == {
        "mine": A + "diff",
        "blocks.0.attn.x": "model.layers.0.self_attn.attn1",
        "norm1": "model.norm1",
    }
