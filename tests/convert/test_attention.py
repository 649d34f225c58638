"""One layer's attention in another variant: what has an exact answer, and what has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.convert import convert
from refdiff.layers import rope_cos_sin, rope_frequencies
from refdiff.model import weights
from refdiff.model.diffllama import Context, attention
from tests.golden import unilm
from tests.model.models import small_config, small_model
from tests.tolerances import close


def test_a_lambda_that_depends_on_the_token_is_no_llama() -> None:
    model = small_model(variant="v2")
    with pytest.raises(ValueError, match="where λ depends on the token"):
        convert(model.config, model.params, "plain")


@pytest.mark.parametrize(("one", "other"), [("hf", "paper"), ("paper", "hf")])
def test_no_size_of_the_values_makes_up_for_an_epsilon_of_0(one: str, other: str) -> None:
    model = small_model(variant=one, rms_norm_eps=0.0)
    with pytest.raises(ValueError, match="cannot convert a norm with ε = "):
        convert(model.config, model.params, other)


@pytest.mark.parametrize("size", ["gqa2", "gqa3"])
def test_weights_of_the_eager_file_with_heads_repeated(size: str) -> None:
    """What the message advises, with the weights and the output of unilm's own file."""
    case = unilm.case(f"v1-{size}")
    pairs, layer, D = case.options["num_heads"], case.options["depth"], case.x.shape[2]
    d, n = D // pairs // 2, pairs // case.key_heads
    p = weights.nest({name.replace("out_proj", "o_proj"): array for name, array in case.weights.items()})
    sizes = {
        "variant": "paper",
        "hidden_size": D,
        "num_attention_heads": 2 * pairs,
        "head_dim": d,
        "rms_norm_eps": 1e-6,
    }

    def to_hf(key_heads: int, attention: dict[str, Any]) -> Any:
        config = small_config(num_key_value_heads=key_heads, **sizes)
        return convert(config, {"layers": [{"self_attn": attention}]}, "hf", eager=True)

    with pytest.raises(ValueError, match=f"v_proj, which are {2 * d} wide, .* num_key_value_heads {2 * pairs} they"):
        to_hf(2 * case.key_heads, p)
    for name, width in (("k_proj", d), ("v_proj", 2 * d)):
        heads = p[name]["weight"].reshape(-1, width, D)
        p[name] = {"weight": np.repeat(heads, n, axis=0).reshape(-1, D)}
    config, params = to_hf(2 * pairs, p)
    cos, sin = rope_cos_sin(np.arange(7)[None], *rope_frequencies(config.rope_parameters, d, 64, 7), np.float64)
    context = Context(config, ops_for(), cos, sin)
    out = attention(params["layers"][0]["self_attn"], case.x, layer, context)
    close(out, case.outputs["multihead_diffattn"], unilm.SAME)
