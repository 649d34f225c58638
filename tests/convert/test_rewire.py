"""The same function in another variant, on random models; and what has no exact answer is refused."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.arrays import Deferred, to_numpy
from refdiff.convert import convert, convert_later, prove
from refdiff.layers.diff_heads_paper import SUBLN_EPS
from refdiff.model import weights
from refdiff.model.variants import VARIANTS, conversions
from tests.layers.places import Place
from tests.model.models import ids, small_model
from tests.tolerances import EXACT, close

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer than the")  # where frequencies switch

CONVERTED = 1e-10
"""Logits of a converted model against those of the model it was made of, as a share of the row's largest."""

# (query heads, key heads): with as many and with fewer keys, an odd number of queries to a key, one pair of keys
HEADS = [(2, 2), (4, 4), (4, 2), (6, 2), (8, 4), (12, 4)]
ROPES: list[dict[str, Any]] = [
    {},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    {
        "rope_type": "llama3",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
]
MORE = settings(max_examples=max(60, 2 * settings().max_examples))
TOKENS = 9
LENGTHS = [5, 64]
"""Below and above the number of tokens: where dynamic and longrope have switched, and where they have not."""


@st.composite
def options(draw: st.DrawFn, variant: str, **fields: Any) -> dict[str, Any]:
    """What `made` makes a model of, and what a failing example is printed with."""
    heads, keys = draw(st.sampled_from(HEADS))
    size = draw(st.sampled_from([4, 8, 12]))
    longrope = {
        "rope_type": "longrope",
        "short_factor": [1.0 + i / 8 for i in range(size // 2)],
        "long_factor": [2.0 + i for i in range(size // 2)],
        "original_max_position_embeddings": draw(st.sampled_from(LENGTHS)),
    }
    rope = draw(st.sampled_from([*ROPES, longrope]))
    return {
        "variant": variant,
        "seed": draw(st.integers(0, 99)),
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": size,
        "max_position_embeddings": draw(st.sampled_from(LENGTHS)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "attention_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([SUBLN_EPS, 1e-6, 1e-3])),
        "rope_parameters": {"rope_theta": draw(st.sampled_from([100.0, 10000.0])), **rope},
        **fields,
    }


def made(options: dict[str, Any]) -> Any:
    """A small random model in float64, with weights, biases, norms and λ far from their start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fields that these configs set for the sake of variety
        return small_model(kernels="reference", **options)


def rewired(model: Any, variant: str, **options: Any) -> Any:
    config, params = convert(model.config, model.params, variant, **options)
    assert config.variant == variant
    shapes = {name: array.shape for name, array in weights.flatten(params).items()}
    assert shapes == weights.parameter_shapes(config, type(model).__name__)
    return type(model)(config, params, dtype="float64", kernels="reference")


def zero_lambda_proj(model: Any) -> Any:
    """Make λ = 1/2 for every token."""
    params = copy.deepcopy(model.params)
    for layer in params["model"]["layers"]:
        layer["self_attn"]["lambda_proj"]["weight"][...] = 0
    return type(model)(model.config, params, dtype="float64", kernels="reference")


@pytest.mark.parametrize(("one", "other"), [(one, other) for one in VARIANTS for other in conversions(one)])
@MORE
@given(data=st.data(), seed=st.integers(0, 9))
def test_it_computes_the_same(one: str, other: str, data: st.DataObject, seed: int) -> None:
    model, tokens = made(data.draw(options(one))), ids(seed, 2, TOKENS)
    if one == "v2":  # with one λ for all tokens it is a Llama with twice the heads
        model = zero_lambda_proj(model)
    new = rewired(model, other)
    close(new(tokens).logits, model(tokens).logits, CONVERTED)
    assert new.config.num_attention_heads == model.config.num_attention_heads * (2 if one == "v2" else 1)
    for layer in new.params["model"]["layers"] if other == "paper" else ():
        close(layer["self_attn"]["subln"]["weight"], np.ones(2 * model.config.head_dim), EXACT)


def test_llama_with_an_odd_number_of_heads_to_v2() -> None:
    model = small_model(variant="plain", num_attention_heads=3, num_key_value_heads=1, kernels="reference")
    tokens = ids(0, 2, 9)
    close(rewired(model, "v2")(tokens).logits, model(tokens).logits, CONVERTED)


@pytest.mark.parametrize(
    ("one", "other", "fields"), [("hf", "paper", {"rms_norm_eps": SUBLN_EPS}), ("plain", "v2", {})]
)
@MORE
@given(data=st.data())
def test_a_round_trip_is_bitwise_equal(one: str, other: str, fields: dict[str, Any], data: st.DataObject) -> None:
    model = made(data.draw(options(one, **fields)))
    back = rewired(rewired(model, other), one)
    before, after = weights.flatten(model.params), weights.flatten(back.params)
    assert before.keys() == after.keys()
    for name in before:
        close(after[name], before[name], EXACT)


@pytest.mark.parametrize(("one", "other"), [("hf", "paper"), ("paper", "hf"), ("plain", "v2")])
def test_weights_on_another_backend(away: Place, one: str, other: str) -> None:
    there = small_model(variant=one, rms_norm_eps=1e-6, **away.choice)
    config, params = convert(there.config, there.params, other)
    new = type(there)(config, params, dtype="float64", **away.choice)
    close(to_numpy(new(ids(0, 1, 7)).logits), to_numpy(there(ids(0, 1, 7)).logits), CONVERTED)
    assert prove((there.config, there.params), (config, params)).worst < 1e-13


def test_nothing_is_written_to_and_the_rest_is_shared() -> None:
    model = small_model(variant="paper")
    kept = copy.deepcopy(model.params)
    _, params = convert(model.config, model.params, "hf")
    for name, array in weights.flatten(model.params).items():
        close(array, weights.flatten(kept)[name], EXACT)
    assert params["model"]["embed_tokens"]["weight"] is model.params["model"]["embed_tokens"]["weight"]
    assert model.config.variant == "paper"


@pytest.mark.parametrize(
    ("one", "other"),
    [("plain", "hf"), ("plain", "paper"), ("hf", "plain"), ("paper", "plain"),
     ("hf", "v2"), ("paper", "v2"), ("v2", "hf"), ("v2", "paper")],
)  # fmt: skip
def test_where_the_norm_is_in_the_way(one: str, other: str) -> None:
    model = small_model(variant=one)
    with pytest.raises(
        ValueError, match=f"cannot convert variant '{one}' to '{other}' exactly: the norm after"
    ) as said:
        convert(model.config, model.params, other)
    assert ("weights of 0 for the second map make it uniform attention" in str(said.value)) == (one == "plain")


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=f"variant: got 'flash', expected one of {', '.join(VARIANTS)}$"):
        convert(model.config, model.params, "flash")


def test_a_variant_without_a_step_is_not_said_to_have_a_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "untried", replace(VARIANTS["plain"], model_type="untried_transformer"))
    model = small_model(variant="plain")
    untried = copy.copy(model.config)
    untried.variant = "untried"
    for config, other in ((untried, "plain"), (model.config, "untried")):
        step = f"'{config.variant}' to '{other}'"
        with pytest.raises(ValueError, match=f"^cannot convert variant {step} exactly: no exact conversion is known; "):
            convert(config, model.params, other)


def test_weights_of_the_eager_file() -> None:
    grouped, full = small_model(variant="paper"), small_model(variant="paper", num_key_value_heads=8)
    with pytest.raises(ValueError, match=r"multihead_diffattn\.py repeats 4 key heads to 8 before it pairs them"):
        convert(grouped.config, grouped.params, "hf", eager=True)
    tokens = ids(4, 1, 7)
    close(rewired(full, "hf", eager=True)(tokens).logits, full(tokens).logits, CONVERTED)
    with pytest.raises(ValueError, match="eager: got weights in the variant 'hf', expected \"paper\""):
        convert(small_model().config, small_model().params, "paper", eager=True)


@pytest.mark.parametrize(("one", "other"), [("hf", "paper"), ("paper", "hf"), ("plain", "v2"), ("hf", "hf")])
def test_deferred_conversion_equals_the_immediate_one(one: str, other: str) -> None:
    model = small_model(variant=one, rms_norm_eps=1e-6)
    config, params = convert(model.config, model.params, other)
    config_later, later = convert_later(model.config, model.params, other)
    assert config_later == config
    now, then = weights.flatten(params), weights.flatten(later)
    assert now.keys() == then.keys()
    for name, array in now.items():
        assert isinstance(then[name], Deferred) == (".self_attn." in name and one != other)
        assert (then[name].shape, then[name].dtype) == (array.shape, array.dtype)
        close(to_numpy(then[name]), array, EXACT)
