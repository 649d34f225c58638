"""The decoder against its layers, and the equalities that hold at every step; test_golden.py has transformers'."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refdiff
from refdiff import layers
from refdiff.backends import overlay
from refdiff.model.diffllama import Context, decoder_layer
from tests.model.models import VARIANT_NAMES, ids, small_model
from tests.model.variants import expected

CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def test_hidden_states_are_what_each_layer_was_given_and_the_normed_result():
    model, tokens = small_model(refdiff.DiffLlamaModel, kernels="reference"), ids(1, 2, 5)
    out = model(tokens, output_hidden_states=True)
    assert len(out.hidden_states) == 4
    np.testing.assert_array_equal(out.hidden_states[0], model.params["embed_tokens"]["weight"][tokens])
    _, context = model._embed(tokens, None, None, None, None, False)
    for i, layer in enumerate(model.params["layers"]):
        after = decoder_layer(layer, out.hidden_states[i], i, context)
        if i < 2:
            np.testing.assert_array_equal(out.hidden_states[i + 1], after)
    np.testing.assert_array_equal(out.hidden_states[3], layers.rms_norm(after, model.params["norm"]["weight"], 1e-5))
    np.testing.assert_array_equal(out.hidden_states[3], out.last_hidden_state)


def attention_of_layers(p, x, layer, context):
    """Eq. 3 in every variant, from the layers alone."""
    c, variant = context.config, expected(context.config.variant)

    def heads(name, width):
        return np.moveaxis(layers.linear(x, **p[f"{name}_proj"]).reshape(*x.shape[:2], -1, width), 2, 1)

    rotated = {"interleaved": variant.INTERLEAVED}
    q, k = (layers.rope(heads(name, c.head_dim), context.cos, context.sin, **rotated) for name in "qk")
    v, start = heads("v", c.head_dim * variant.VALUE_SIZE), 0.8 - 0.6 * math.exp(-0.3 * layer)
    return layers.linear(variant.heads(p, x, q, k, v, start, c.rms_norm_eps), **p["o_proj"])


@pytest.mark.parametrize("variant", VARIANT_NAMES)
@given(
    seed=st.integers(0, 99),
    sizes=st.tuples(*[st.integers(1, 3)] * 4),
    D=st.integers(2, 17),
    layer=st.integers(0, 9),
    eps=st.sampled_from([1e-6, 1e-2]),
)
def test_each_half_of_a_layer_is_added_to_its_input(variant, seed, sizes, D, layer, eps):
    B, T, keys, queries = sizes
    heads = {"num_key_value_heads": 2 * keys, "num_attention_heads": 2 * keys * queries}
    model = small_model(
        seed=seed, variant=variant, kernels="reference", num_hidden_layers=1, hidden_size=D, rms_norm_eps=eps, **heads
    )
    p, x = model.params["model"]["layers"][0], np.random.default_rng(seed).standard_normal((B, T, D))
    angles = layers.rope_cos_sin(np.arange(T)[None], [1.0, 0.1, 0.01], 1.0, np.float64)
    context = Context(model.config, model.ops, *angles)
    silent = {**p["mlp"], "down_proj": {"weight": np.zeros((D, 37))}}
    y = decoder_layer({**p, "mlp": silent}, x, layer, context)
    attended = attention_of_layers(
        p["self_attn"], layers.rms_norm(x, p["input_layernorm"]["weight"], eps), layer, context
    )
    np.testing.assert_allclose(y - x, attended, **CLOSE)
    normed = layers.rms_norm(y, p["post_attention_layernorm"]["weight"], eps)
    fed = layers.swiglu(normed, **p["mlp"], act="silu")
    np.testing.assert_allclose(decoder_layer(p, x, layer, context) - y, fed, **CLOSE)


@pytest.mark.parametrize("variant", VARIANT_NAMES)
@pytest.mark.parametrize("past", [0, 4])
def test_rope_rotates_queries_and_keys_by_the_positions_of_their_tokens(variant, past):
    """Angles by hand, so that a wrong RoPE in the model is told as such."""
    model, tokens = small_model(variant=variant, kernels="reference", num_hidden_layers=1), ids(1, 1, past + 5)
    calls = []

    def wrap(name, function):
        return lambda *args, **options: (out := function(*args, **options), calls.append((name, args, out)))[0]

    cache = model(tokens[:, :past], use_cache=True).cache if past else None
    model.ops = overlay(model.ops, wrap)
    model(tokens[:, past:], cache=cache)
    check_rotations(calls, variant, model.config.head_dim, past)


def check_rotations(calls, variant, d, past):
    """Queries and keys of 5 tokens after `past` others are rotated by angles computed here."""
    rotated = [(args[0], out) for name, args, out in calls if name == "rope"]
    assert len(rotated) == 2, "RoPE: queries and keys of a layer are rotated once each"
    pairs = [(2 * i, 2 * i + 1) if expected(variant).INTERLEAVED else (i, i + d // 2) for i in range(d // 2)]
    for (before, after), name in zip(rotated, ("queries", "keys"), strict=True):
        for t in range(5):
            for i, (a, b) in enumerate(pairs):
                turn = complex(math.cos(angle := (past + t) * 10000 ** (-2 * i / d)), math.sin(angle))
                z = turn * (before[0, :, t, a] + 1j * before[0, :, t, b])
                message = f"RoPE of {name} at position {past + t}, numbers {a} and {b} of a head"
                np.testing.assert_allclose(after[0, :, t, a], z.real, **CLOSE, err_msg=message)
                np.testing.assert_allclose(after[0, :, t, b], z.imag, **CLOSE, err_msg=message)


MASKS = {
    "plain": lambda B, T, S, H: {},
    "padding": lambda B, T, S, H: {"attention_mask": (np.arange(S) >= np.arange(B)[:, None] * 2).astype(int)},
    "may see": lambda B, T, S, H: {"attention_mask": np.tril(np.ones((B, 1, T, S)), S - T - 1) + np.eye(T, S) > 0},
    "added": lambda B, T, S, H: {"attention_mask": np.random.default_rng(3).standard_normal((B, H, T, S))},
}


@pytest.mark.parametrize("variant", VARIANT_NAMES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("past", [0, 4])
@pytest.mark.parametrize("keep", [1, 3, 9])
def test_tokens_that_nobody_reads_change_nothing(variant, mask, past, keep):
    """The last layer computes only what is read; more than there is, is all."""
    model, tokens = small_model(variant=variant), ids(4, 3, past + 7)
    see = MASKS[mask](3, 7, past + 7, model.config.num_query_heads)
    results = []
    for options in ({}, {"logits_to_keep": keep}, {"logits_to_keep": keep, "output_hidden_states": True}):
        cache = model(tokens[:, :past], use_cache=True).cache if past else None
        out = model(tokens[:, past:], cache=cache, use_cache=True, **see, **options)
        results.append((out.logits, model(ids(5, 3, 2), cache=out.cache).logits))
    (everything, later), (read, then), (shown, after) = results
    np.testing.assert_allclose(read, everything[:, -keep:], **CLOSE)
    np.testing.assert_allclose(then, later, **CLOSE)
    np.testing.assert_allclose(shown, everything[:, -keep:], **CLOSE)
    np.testing.assert_allclose(after, later, **CLOSE)
