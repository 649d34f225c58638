"""From inputs to the output: what must hold whatever the numbers, what each field does, which heads are a pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.backends import ops_for, overlay
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.truth.attention_operands import attention_operands
from refdiff.oracle.truth.forward import (
    dense,
    differences,
    finished,
    forward,
    gated,
    normed,
    out_factor,
    out_shape,
    project,
    projected,
    whole_wiring,
)
from refdiff.oracle.truth.head_indices import head_indices, value_heads
from tests.oracle.example_inputs import draw, small

OPS = ops_for()
CAUSAL = st.sampled_from([name for name in PRESETS if name != "timm"])
SEEDS = st.integers(0, 2**16)


@given(CAUSAL, SEEDS)
def test_later_tokens_change_nothing(name: str, seed: int) -> None:
    spec = small(name)
    inputs = draw(spec, seed, T=6, S=6)
    before = forward(spec, inputs)
    for n in ("q", "k", "v"):
        inputs[n][:, :, 4:] += 1.0
    after = forward(spec, inputs)
    assert np.array_equal(before[:, :, :4], after[:, :, :4])
    assert not np.allclose(before[:, :, 4:], after[:, :, 4:])


@given(CAUSAL, SEEDS)
def test_one_token_at_a_time_is_all_at_once(name: str, seed: int) -> None:
    spec = small(name)
    inputs = draw(spec, seed, T=5, S=5)
    whole = forward(spec, inputs)
    for t in range(5):
        part = {**inputs, "q": inputs["q"][:, :, t : t + 1], "k": inputs["k"][:, :, : t + 1]}
        part["v"] = inputs["v"][:, :, : t + 1]
        if "lambda_logits" in inputs:
            part["lambda_logits"] = inputs["lambda_logits"][:, t : t + 1]
        if "gate_logits" in inputs:
            part["gate_logits"] = inputs["gate_logits"][:, :, t : t + 1]
        assert np.allclose(forward(spec, part)[:, :, 0], whole[:, :, t], rtol=0, atol=1e-12)


def test_each_field_of_the_end_by_hand() -> None:
    spec = small("ms_v1", norm_eps=0.5)
    inputs = draw(spec)
    heads = np.random.default_rng(0).normal(size=(2, 6, 5, 12))
    w = inputs["norm_weight"]

    def rms(x: np.ndarray, axis: Any = -1) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=axis, keepdims=True) + 0.5)

    assert np.allclose(normed(spec, heads, inputs, OPS), rms(heads) * w)
    assert np.allclose(normed(spec.replace(norm_over="all_heads"), heads, inputs, OPS), rms(heads, (1, 3)) * w)
    halves = np.concatenate([rms(heads[..., :6]), rms(heads[..., 6:])], axis=-1)
    assert np.allclose(normed(spec.replace(norm_over="half_head"), heads, inputs, OPS), halves * w)
    assert normed(spec.replace(norm="none", norm_weight=False), heads, {}, OPS) is heads
    start = 0.8 - 0.6 * np.exp(-0.6)
    factors = {"1 - lambda_init": 1 - start, "lambda_init": start, "none": 1.0}
    for word, factor in factors.items():
        assert np.isclose(out_factor(spec.replace(out_scale=word), inputs, OPS), factor)
        assert np.allclose(finished(spec.replace(out_scale=word), heads, inputs, OPS), factor * rms(heads) * w)
    lambda_ = (
        np.exp(inputs["lambda_q1"] @ inputs["lambda_k1"]) - np.exp(inputs["lambda_q2"] @ inputs["lambda_k2"]) + start
    )
    assert np.isclose(out_factor(spec.replace(out_scale="1 - lambda"), inputs, OPS), 1 - lambda_)


CHANGED: list[tuple[str, dict[str, Any]]] = [
    ("hf_diffllama", {"norm_over": "half_head"}), ("ms_v1", {"norm_over": "all_heads"}),
    ("ms_v1", {"masked_rows": "uniform"}), ("diff_v2", {"norm": "rms"}), ("ms_v1", {"values": "single"}),
    ("hf_diffllama", {"softcap": 2.0, "scale": 0.3}), ("gda", {"pairing": "halves"}), ("ms_v1", {"out_scale": "none"}),
    ("hf_diffllama", {"norm": "none"}), ("hf_diffllama", {"group_order": "tiled"}), ("hf_diffllama", {"norm_eps": 0.3}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), CHANGED, ids=str)
def test_the_order_of_the_paper_is_the_same_as_the_parts(name: str, changes: dict[str, Any]) -> None:
    spec = small(name, **changes)
    inputs = {**draw(spec), "key_mask": np.array([[True] * 7, [False] * 2 + [True] * 5])}
    parts = finished(spec, differences(spec, attention_operands(spec, inputs, OPS), OPS), inputs, OPS)
    assert np.allclose(dense(spec, inputs, OPS), parts, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("word", "value"), [("zeros", 0.0), ("nan", np.nan)])
def test_rows_that_see_nothing(word: str, value: float) -> None:
    spec = small("ms_v1", masked_rows=word)
    out = forward(spec, draw(spec, T=5, S=3))
    assert np.array_equal(out[:, :, :2], np.full_like(out[:, :, :2], value), equal_nan=True)
    assert np.isfinite(out[:, :, 2:]).all()


def test_uniform_rows_are_the_mean_of_the_values() -> None:
    spec = small("ms_v1", masked_rows="uniform", norm="none", norm_weight=False, out_scale="none", lambda_form="given")
    inputs = {**draw(spec, T=5, S=3), "lambda_full": np.asarray(0.4)}
    mean = 0.6 * inputs["v"].mean(axis=2)[:, [0, 0, 0, 1, 1, 1]]
    assert np.allclose(forward(spec, inputs)[:, :, 0], mean, rtol=1e-13)


@pytest.mark.parametrize("lengths", [{"B": 0}, {"T": 0}, {"S": 0}, {"T": 0, "S": 0}])
@pytest.mark.parametrize("name", PRESETS)
def test_lengths_of_nothing(name: str, lengths: dict[str, int]) -> None:
    spec = small(name)
    inputs = draw(spec, **lengths)
    out = forward(spec, inputs)
    assert out.shape == out_shape(spec, inputs)
    assert not out.any()


def test_a_layer_is_its_projections_around_the_core() -> None:
    spec = small("hf_diffllama")
    inputs = draw(spec, layer=True)
    core = project(spec, inputs, OPS)
    q = inputs["x"] @ inputs["q_proj.weight"].T
    assert np.array_equal(core["q"][:, 3], q[..., 18:24])
    out = forward(spec, core)
    by_hand = np.concatenate([out[:, i] for i in range(6)], axis=-1) @ inputs["o_proj.weight"].T
    assert np.allclose(projected(out, inputs, OPS), by_hand, rtol=1e-13)
    assert np.allclose(forward(spec, inputs), by_hand, rtol=1e-13)


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_laid_over_the_layers_acts(name: str) -> None:
    spec = small(name)
    inputs, heard = draw(spec), []

    def wrap(part: str, layer: Any) -> Any:
        def heard_of(*args: Any, **options: Any) -> Any:
            heard.append(part)
            return layer(*args, **options)

        return heard_of

    forward(spec, inputs, overlay(OPS, wrap))
    assert any(part.startswith("diff_heads") for part in heard)


@pytest.mark.parametrize("name", PRESETS)
def test_the_layers_have_these_wirings(name: str) -> None:
    """Through the layer of the whole wiring, and by the numbers of heads."""
    spec, ops = small(name), ops_for()
    inputs = draw(spec)
    by_numbers = finished(spec, differences(spec, attention_operands(spec, inputs, ops), ops), inputs, ops)
    by_numbers = gated(spec, by_numbers, inputs, ops)
    assert np.abs(dense(spec, inputs, ops) - by_numbers).max() <= 1e-13
    assert (whole_wiring(spec, inputs) is None) == (name in ("ms_v1_naive", "gda", "motif3", "attention"))


def test_by_hand() -> None:
    w = head_indices(small("hf_diffllama", query_heads=8, key_heads=4))
    assert [x.tolist() for x in (w.q1, w.q2, w.k1, w.k2, w.v)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [0, 0, 1, 1], [2, 2, 3, 3], [0, 0, 1, 1],
    ]  # fmt: skip
    w = head_indices(small("ms_v1", query_heads=8, key_heads=4))
    assert [w.q1.tolist(), w.q2.tolist()] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert [w.k1.tolist(), w.k2.tolist(), w.v.tolist()] == [[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 1, 1]]


def test_groups_of_signals_and_a_noise() -> None:
    w = head_indices(small("gda", query_heads=8, key_heads=2, ratio=3))
    assert [w.q1.tolist(), w.q2.tolist()] == [[0, 1, 2, 4, 5, 6], [3, 3, 3, 7, 7, 7]]
    w = head_indices(small("gda", query_heads=8, key_heads=2, ratio=3, pairing="halves"))
    assert [w.q1.tolist(), w.q2.tolist()] == [[0, 1, 2, 3, 4, 5], [6, 6, 6, 7, 7, 7]]


def test_which_heads_are_joined() -> None:
    parts = {
        name: [p.tolist() for p in value_heads(small(name))] for name in ("hf_diffllama", "motif", "ms_v1", "diff_v2")
    }
    assert parts == {
        "hf_diffllama": [[0, 1], [2, 3]],
        "motif": [[0, 2], [1, 3]],
        "ms_v1": [[0, 1]],
        "diff_v2": [[0, 1, 2]],
    }
