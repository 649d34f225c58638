"""New weights: the law that each parameter is drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from refdiff.model.weights import flatten, initialize
from tests.model.models import VARIANT_NAMES
from tests.model.variants import expected
from tests.model.weights.files import tiny_config


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_spread(variant: str) -> None:
    config = tiny_config(
        hidden_size=160, head_dim=400, initializer_range=0.3, lambda_std_dev=0.05, attention_bias=True, pad_token_id=4,
        variant=variant, hidden_act="prelu",
    )  # fmt: skip
    drawn = flatten(initialize(config, "DiffLlamaForTokenClassification", seed=1))
    attention = "model.layers.0.self_attn."
    for name in ("q_proj.weight", "v_proj.weight", "o_proj.weight"):
        assert drawn[attention + name].std() == pytest.approx(0.3, rel=0.02)
        assert abs(drawn[attention + name].mean()) < 0.01
    if attention + "lambda_q1" in drawn:
        assert not np.array_equal(drawn[attention + "lambda_q1"], drawn[attention + "lambda_q2"])
    for name, values in drawn.items():
        if name.endswith("bias"):
            assert_array_equal(values, 0)
        if name.endswith(("norm.weight", "subln.weight")):
            assert_array_equal(values, 1)
        if name.endswith("act_fn.weight"):
            assert_array_equal(values, 0.25)
    embeddings = drawn["model.embed_tokens.weight"]
    assert_array_equal(embeddings[4], 0)
    assert (embeddings[np.arange(7) != 4] != 0).all()


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_first_values_of_a_variants_own_parameters(variant: str) -> None:
    """Over 400 layers, so that a single number has a mean and a deviation, too."""
    config = tiny_config(variant=variant, num_hidden_layers=400, initializer_range=0.3, lambda_std_dev=0.05)
    drawn = flatten(initialize(config, "DiffLlamaModel", seed=2))
    for name, (mean, field) in expected(variant).FIRST_VALUES.items():
        values = np.stack([drawn[f"layers.{i}.self_attn.{name}"] for i in range(400)])
        deviation = getattr(config, str(field), field)
        told = f"{variant}: first values of {name} in `parameters` of refdiff/model/variants/{variant}.py"
        assert values.mean() == pytest.approx(mean, abs=5 * deviation / values.size**0.5), told
        assert values.std() == pytest.approx(deviation, rel=0.15), told


@pytest.mark.parametrize("spread", [0.02, 0.0])  # of 0 it is the usual one
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_numbers_are_the_generators_in_the_order_of_the_names(dtype: type, spread: float) -> None:
    config = tiny_config(initializer_range=spread)
    params = flatten(initialize(config, "DiffLlamaModel", seed=5, dtype=np.dtype(dtype).name))
    generator = np.random.default_rng(5)
    for name in list(params)[:6]:
        deviation = 0.1 if "lambda" in name else 0.02
        assert_array_equal(params[name], generator.standard_normal(params[name].shape, dtype) * dtype(deviation))
