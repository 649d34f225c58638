"""New weights: the law that each parameter is drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from refdiff.model.weights import flatten, initialize
from tests.model.weights.files import tiny_config


def test_spread() -> None:
    config = tiny_config(
        hidden_size=160, head_dim=400, initializer_range=0.3, lambda_std_dev=0.05, attention_bias=True, pad_token_id=4
    )
    drawn = flatten(initialize(config, "DiffLlamaForTokenClassification", seed=1))
    attention = "model.layers.0.self_attn."
    for name in ("q_proj.weight", "v_proj.weight", "o_proj.weight"):
        assert drawn[attention + name].std() == pytest.approx(0.3, rel=0.02)
        assert abs(drawn[attention + name].mean()) < 0.01
    for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
        assert drawn[attention + name].std() == pytest.approx(0.05, rel=0.1)
    assert not np.array_equal(drawn[attention + "lambda_q1"], drawn[attention + "lambda_q2"])
    for name, values in drawn.items():
        if name.endswith("bias"):
            assert_array_equal(values, 0)
        if name.endswith("norm.weight"):
            assert_array_equal(values, 1)
    embeddings = drawn["model.embed_tokens.weight"]
    assert_array_equal(embeddings[4], 0)
    assert (embeddings[np.arange(7) != 4] != 0).all()


def test_a_range_of_zero_means_the_usual_one() -> None:
    drawn = flatten(initialize(tiny_config(hidden_size=200, initializer_range=0.0), "DiffLlamaModel"))
    usual = flatten(initialize(tiny_config(hidden_size=200), "DiffLlamaModel"))
    assert drawn["layers.0.mlp.up_proj.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert_array_equal(drawn["layers.0.mlp.up_proj.weight"], usual["layers.0.mlp.up_proj.weight"])


def test_seed() -> None:
    once, again, other = (initialize(tiny_config(), "DiffLlamaModel", seed=seed) for seed in (5, 5, 6))
    assert_array_equal(once["embed_tokens"]["weight"], again["embed_tokens"]["weight"])
    assert not np.array_equal(once["embed_tokens"]["weight"], other["embed_tokens"]["weight"])
    unless_told, told = initialize(tiny_config(), "DiffLlamaModel"), initialize(tiny_config(), "DiffLlamaModel", seed=0)
    assert_array_equal(unless_told["embed_tokens"]["weight"], told["embed_tokens"]["weight"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_numbers_are_the_generators_in_the_order_of_the_names(dtype: type) -> None:
    params = flatten(initialize(tiny_config(), "DiffLlamaModel", seed=5, dtype=np.dtype(dtype).name))
    generator = np.random.default_rng(5)
    for name in list(params)[:6]:
        deviation = 0.1 if "lambda" in name else 0.02
        assert_array_equal(params[name], generator.standard_normal(params[name].shape, dtype) * dtype(deviation))


@pytest.mark.parametrize(("dtype", "held"), [("float32", "float32"), ("float64", "float64"), ("bfloat16", "float32")])
def test_precision(dtype: str, held: str) -> None:
    drawn = flatten(initialize(tiny_config(attention_bias=True), "DiffLlamaModel", dtype=dtype))
    assert {values.dtype.name for values in drawn.values()} == {held}
    values = drawn["embed_tokens.weight"]
    if dtype == "bfloat16":
        assert not (values.view(np.uint32) & 0xFFFF).any()
    if dtype == "float64":
        assert (values != values.astype(np.float32)).any()
