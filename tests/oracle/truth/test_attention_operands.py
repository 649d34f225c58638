"""What goes into the equation: rotations, joined values, λ, scores and their sums."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends import ops_for, overlay
from refdiff.oracle.truth.attention_operands import (
    attention_operands,
    joined,
    lambda_init,
    lambda_of,
    layer_mask,
    limited,
    log_sum_exp,
    query_factor,
    rotated,
    scores,
    zero_unseen,
)
from tests.oracle.example_inputs import draw, small

OPS = ops_for()


def test_the_queries_are_the_last_of_the_keys() -> None:
    spec = small("hf_diffllama")
    inputs = draw(spec, T=7)
    q, k = rotated(spec, inputs, OPS)
    later, _ = rotated(spec, {**inputs, "q": inputs["q"][:, :, 4:]}, OPS)
    assert np.array_equal(later, q[:, :, 4:])
    at = {"q_positions": np.arange(3, 10)[None], "k_positions": np.arange(7)[None]}
    moved, same = rotated(spec, {**inputs, **at}, OPS)
    assert np.array_equal(same, k)
    assert not np.allclose(moved, q)
    assert rotated(spec.replace(rope="none"), inputs, OPS)[0] is inputs["q"]


def test_values_are_joined_as_the_spec_has_them() -> None:
    v = np.arange(4.0).reshape(1, 4, 1, 1)
    spec = small("hf_diffllama")
    assert joined(spec, v, OPS).ravel().tolist() == [0, 2, 1, 3]
    assert joined(spec.replace(values="interleaved"), v, OPS).ravel().tolist() == [0, 1, 2, 3]
    assert joined(small("ms_v1"), v, OPS) is v


@pytest.mark.parametrize(
    ("layer", "expected"), [(0, 0.8 - 0.6 * math.exp(0.3)), (1, 0.2), (4, 0.8 - 0.6 * math.exp(-0.9))]
)
def test_lambda_of_one_layer_lower(layer: int, expected: float) -> None:
    assert lambda_init(small("motif", layer=layer), OPS) == pytest.approx(expected, rel=1e-15)


def test_lambda_init_of_the_layer_or_a_number() -> None:
    assert lambda_init(small("ms_v1", layer=3), OPS) == layers.lambda_init(3)
    assert lambda_init(small("ms_v1", lambda_base="constant", lambda_init=0.7), OPS) == 0.7


def test_lambda_by_form() -> None:
    v2 = small("diff_v2")
    inputs = draw(v2)
    expected = 1 / (1 + np.exp(-inputs["lambda_logits"]))
    assert np.allclose(lambda_of(v2, inputs, OPS)[..., 0], np.moveaxis(expected, 1, 2), rtol=1e-15)
    given = small("ms_v1", lambda_form="given")
    shapes = {(): (), (6,): (1, 6, 1, 1), (2, 6, 5): (2, 6, 5, 1)}
    for shape, wide in shapes.items():
        assert lambda_of(given, {"lambda_full": np.ones(shape)}, OPS).shape == wide


def test_scores_are_scaled_capped_and_biased() -> None:
    spec = small("hf_diffllama", rope="none", causal="none")
    inputs = draw(spec)
    plain = scores(attention_operands(spec, inputs, OPS), 2)
    by_hand = np.einsum("htd,sd->hts", inputs["q"][0, 6:9], inputs["k"][0, 2]) / math.sqrt(6)
    assert np.allclose(plain[0, :3], by_hand, rtol=1e-13)
    assert query_factor(spec.replace(scale=0.5)) == pytest.approx(0.5 * math.sqrt(6))
    scaled = scores(attention_operands(spec.replace(scale=0.5), inputs, OPS), 2)
    assert np.allclose(scaled, plain * 0.5 * math.sqrt(6), rtol=1e-13)
    cap = scores(attention_operands(spec.replace(softcap=1.5), inputs, OPS), 2)
    assert np.allclose(cap, 1.5 * np.tanh(plain / 1.5), rtol=1e-13)
    bias = np.arange(7.0)
    assert np.allclose(scores(attention_operands(spec, {**inputs, "bias": bias}, OPS), 2), plain + bias, rtol=1e-13)


def test_limited_scores_are_scores_of_their_own() -> None:
    q, k = np.ones((1, 1, 2, 4)), np.ones((1, 1, 3, 4))
    z, unit = limited(q, k, lambda z: z - 0.5)
    assert np.allclose(z @ np.swapaxes(unit, -1, -2) / math.sqrt(3), 1.5)


def test_sums_of_exponentials() -> None:
    z = np.array([[0.0, math.log(3)], [1e5, 1e5], [-math.inf, -math.inf], [-1e5, -math.inf]])
    assert log_sum_exp(z).tolist() == pytest.approx([math.log(4), 1e5 + math.log(2), -math.inf, -1e5])
    assert log_sum_exp(np.zeros((2, 0))).tolist() == [-math.inf, -math.inf]


def test_only_what_nobody_sees_is_made_a_number() -> None:
    x = np.array([math.nan, math.nan, 1.0]).reshape(1, 1, 3, 1)
    see = np.array([True, False, True]).reshape(1, 1, 1, 3)
    assert np.isnan(zero_unseen(x, see)).ravel().tolist() == [True, False, False]
    assert zero_unseen(see, see) is see


def test_the_layers_own_triangle_is_used_where_it_is_one() -> None:
    spec, inputs = small("hf_diffllama"), draw(small("hf_diffllama"))
    assert layer_mask(spec, inputs) == (None, True)
    mask, causal = layer_mask(spec, {**inputs, "key_mask": np.ones((2, 7), np.bool_)})
    assert causal
    assert mask is not None
    assert mask.shape == (2, 1, 5, 7)
    mask, causal = layer_mask(spec.replace(window=3), inputs)
    assert causal, "a window is a mask beside it"
    assert mask is not None


def test_uniform_rows_see_everything_with_scores_of_zero() -> None:
    spec = small("ms_v1", masked_rows="uniform")
    s = attention_operands(spec, {**draw(spec, T=5, S=3), "bias": np.ones((5, 3))}, OPS)
    assert s.see[0, 0, 0].all()
    assert not s.q1[:, :, 0].any()
    assert s.bias is not None
    assert not s.bias[0, 0, 0].any()


def test_q_and_k_turn_by_the_same_frequencies() -> None:
    """They are computed once: an error of theirs turns a query and its keys alike."""
    seen: list[str] = []
    counted = overlay(OPS, lambda name, f: lambda *args, **kwargs: (seen.append(name), f(*args, **kwargs))[1])
    spec = small("hf_diffllama")
    rotated(spec, draw(spec, T=7), counted)
    assert seen == ["rope_frequencies", "rope_cos_sin", "rope_cos_sin", "rope", "rope"]
