"""What goes into the equation: who sees whom, rotations, scores and their sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.backends import ops_for, overlay
from refdiff.oracle import Spec
from refdiff.oracle.truth.attention_mask import attention_mask
from refdiff.oracle.truth.attention_operands import (
    attention_operands,
    lambda_init,
    log_sum_exp,
    query_factor,
    rotated,
    scores,
)
from tests.oracle.example_inputs import draw, small

OPS = ops_for()


@pytest.mark.parametrize(
    ("layer", "expected"), [(0, 0.8 - 0.6 * math.exp(0.3)), (1, 0.2), (4, 0.8 - 0.6 * math.exp(-0.9))]
)
def test_lambda_of_one_layer_lower(layer: int, expected: float) -> None:
    assert lambda_init(small("motif", layer=layer), OPS) == pytest.approx(expected, rel=1e-15)


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


def test_sums_of_exponentials() -> None:
    z = np.array([[0.0, math.log(3)], [1e5, 1e5], [-math.inf, -math.inf], [-1e5, -math.inf]])
    assert log_sum_exp(z).tolist() == pytest.approx([math.log(4), 1e5 + math.log(2), -math.inf, -1e5])
    assert log_sum_exp(np.zeros((2, 0))).tolist() == [-math.inf, -math.inf]


def test_q_and_k_turn_by_the_same_frequencies() -> None:
    """They are computed once: an error of theirs turns a query and its keys alike."""
    seen: list[str] = []
    counted = overlay(OPS, lambda name, f: lambda *args, **kwargs: (seen.append(name), f(*args, **kwargs))[1])
    spec = small("hf_diffllama")
    rotated(spec, draw(spec, T=7), counted)
    assert seen == ["rope_frequencies", "rope_cos_sin", "rope_cos_sin", "rope", "rope"]


def problem(T: int, S: int) -> dict[str, np.ndarray]:
    return {"q": np.zeros((1, 1, T, 2)), "k": np.zeros((1, 1, S, 2))}


def by_loop(spec: Spec, T: int, S: int) -> np.ndarray:
    see = np.zeros((T, S), np.bool_)
    for t in range(T):
        here = t if spec.causal == "top_left" else t + S - T
        for s in range(S):
            causal = spec.causal == "none" or s <= here
            window = spec.window is None or (here - spec.window < s < here + spec.window)
            see[t, s] = causal and window
    return see


@given(
    st.integers(0, 6), st.integers(0, 6), st.sampled_from(["bottom_right", "top_left", "none"]),
    st.one_of(st.none(), st.integers(0, 8)),
)  # fmt: skip
def test_against_a_loop(T: int, S: int, causal: str, window: int | None) -> None:
    spec = small("hf_diffllama", causal=causal, window=window)
    assert np.array_equal(attention_mask(spec, problem(T, S))[0, 0], by_loop(spec, T, S))


def test_padding_and_masks_are_taken_away() -> None:
    inputs = {**problem(2, 3), "key_mask": np.array([[True, False, True]])}
    assert attention_mask(small("timm"), inputs)[0, 0].tolist() == [[True, False, True]] * 2
    inputs["mask"] = np.array([[True, True, False], [True, True, True]])
    assert attention_mask(small("timm"), inputs)[0, 0].tolist() == [[True, False, False], [True, False, True]]
