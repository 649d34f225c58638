"""The emulated passes: near the layer and its derivative in every order, and with float16's own accidents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.oracle import Recipe
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.evaluation_order import DRAWS, HELD_OUT, MEMBERS, Arithmetic, Order
from refdiff.oracle.rounding.rounded_attention import rounded_attention, rounded_attention_vjp

ORDERS = (*MEMBERS, *DRAWS, *HELD_OUT)


def inputs(storage: str, H: int = 4, K: int = 2, T: int = 19, S: int = 23, d: int = 8, e: int = 12) -> tuple[Any, ...]:
    rng = np.random.default_rng(7)
    shapes = [(2, H, T, d), (2, K, S, d), (2, H, T, d), (2, K, S, d), (2, K, S, e)]
    return *(round_to(rng.normal(size=s), storage) for s in shapes), np.asarray(0.625)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("recipe", ["float32", "tf32", "bfloat16", "float16"])
def test_is_the_layer_up_to_rounding(order: Order, recipe: str) -> None:
    x = inputs(Recipe.of(recipe).storage)
    u = {"float32": 2.0**-23, "tf32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}[recipe]
    mask = np.random.default_rng(3).random((2, 1, 19, 23)) < 0.7
    mask[0, 0, 5] = False
    got = rounded_attention(Arithmetic(Recipe.of(recipe), order), *x, mask, causal=True)
    want = layers.diff_attention(*x, mask, causal=True)
    off = np.sqrt(np.mean((got - want) ** 2)) / np.sqrt(np.mean(want**2))
    assert 0.05 * u < off < 4 * u
    assert not got[0, :, 5].any(), "a row that sees nothing is exactly zero"


def test_masks_by_map_and_bias() -> None:
    x = inputs("float32")
    rng = np.random.default_rng(4)
    mask, bias = rng.random((1, 8, 19, 23)) < 0.6, rng.normal(size=(2, 8, 19, 23))
    for order in (MEMBERS[0], MEMBERS[1], MEMBERS[2]):
        got = rounded_attention(Arithmetic(Recipe("float32"), order), *x, mask, bias, causal=False)
        np.testing.assert_allclose(got, layers.diff_attention(*x, mask, bias, causal=False), rtol=0, atol=3e-6)


def test_float16_scores_overflow_before_they_are_scaled() -> None:
    q1, k1, q2, k2, v, lambda_ = inputs("float16", T=3, S=3)
    q1, k1 = np.full_like(q1, 100.0), np.full_like(k1, 100.0)  # 8 · 10⁴ > 65504, scaled 28 284
    late, early = (
        rounded_attention(Arithmetic(Recipe.eager("float16"), Order("", scale_first=first)), q1, k1, q2, k2, v, lambda_)
        for first in (False, True)
    )
    assert np.isnan(late).any()
    assert np.isfinite(early).all()
    fine = rounded_attention(Arithmetic(Recipe("float16"), Order("")), q1, k1, q2, k2, v, lambda_)
    assert np.isfinite(fine).all()


def test_products_are_stored_without_the_factor_of_another_scale() -> None:
    """0.1 q·k for d = 8: q has been multiplied by 0.1 √8, but 8 · 10⁴ is what a kernel stores before it scales."""
    q1, k1, q2, k2, v, lambda_ = inputs("float16", T=3, S=3)
    factor = 0.1 * math.sqrt(8)
    q1, q2, k1 = np.full_like(q1, 100.0 * factor), q2 * factor, np.full_like(k1, 100.0)
    stored, known = (
        rounded_attention(Arithmetic(Recipe.eager("float16"), Order(""), by), q1, k1, q2, k2, v, lambda_)
        for by in (1.0, factor)
    )
    assert np.isfinite(stored).all()
    assert np.isnan(known).any()
    small = [
        rounded_attention(Arithmetic(Recipe.eager("float16"), Order(""), by), q1 / 50, k1, q2, k2, v, lambda_)
        for by in (1.0, factor)
    ]
    np.testing.assert_allclose(*small, rtol=0.01, atol=0.01)


def test_float16_weights_underflow() -> None:
    v = np.zeros((1, 1, 2, 1))
    v[0, 0, 1] = 30_000.0
    q, k = np.full((1, 1, 1, 1), 1.0), np.asarray([0.0, -18.0]).reshape(1, 1, 2, 1)  # e⁻¹⁸ = 1.5e-8 < 3e-8
    x = (q, k, q, k, v, np.asarray(0.0))
    for storage, value in (("float16", 0.0), ("bfloat16", 4.57e-4)):
        got = rounded_attention(Arithmetic(Recipe(storage), Order("")), *x)
        assert got[0, 0, 0, 0] == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("recipe", ["float32", "tf32", "bfloat16", "float16"])
def test_is_the_derivative_up_to_rounding(order: Order, recipe: str) -> None:
    x = inputs(Recipe.of(recipe).storage)
    u = {"float32": 2.0**-23, "tf32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}[recipe]
    g = np.random.default_rng(8).integers(-8, 9, (2, 4, 19, 12)) / 8.0
    got = rounded_attention_vjp(Arithmetic(Recipe.of(recipe), order), g, *x)
    want = layers.diff_attention_vjp(g, *x)
    for mine, right in zip(got[:5], want[:5], strict=True):
        assert mine.shape == right.shape
        off = np.sqrt(np.mean((mine - right) ** 2)) / np.sqrt(np.mean(right**2))
        assert 0.05 * u < off < 6 * u
    size = np.sqrt(np.sum((g * layers.diff_attention(*x[:5], np.asarray(0.0))) ** 2))
    assert abs(got[5] - want[5]) < 6 * u * size


def test_eager_ways_store_the_gradient_of_the_weights() -> None:
    x = inputs("bfloat16")
    g = np.random.default_rng(8).integers(-8, 9, (2, 4, 19, 12)) / 8.0
    want = layers.diff_attention_vjp(g, *x)[0]
    order = Order("", stored=True)
    fused, eager = (
        rounded_attention_vjp(Arithmetic(r, order), g, *x)[0] for r in (Recipe("bf16"), Recipe.eager("bf16"))
    )
    assert np.mean((eager - want) ** 2) > 1.2 * np.mean((fused - want) ** 2)


def test_weights_from_a_large_log_sum_exp_in_float32() -> None:
    q1, k1, q2, k2, v, lambda_ = inputs("float32")
    x = (30 * q1, 10 * k1, q2, k2, v, lambda_)  # scores of hundreds
    g = np.random.default_rng(8).normal(size=(2, 4, 19, 12))
    want = layers.diff_attention_vjp(g, *x)[4]
    whole, by_tiles = (
        np.sqrt(np.mean((rounded_attention_vjp(Arithmetic(Recipe("float32"), o), g, *x)[4] - want) ** 2))
        for o in (Order(""), Order("", tile=16))
    )
    assert by_tiles > 1.5 * whole
