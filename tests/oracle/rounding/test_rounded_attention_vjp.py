"""The emulated backward pass is near the layer's derivative in every order."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff import layers
from refdiff.oracle.rounding.evaluation_order import Arithmetic, Order
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.rounding.rounded_attention import rounded_attention_vjp
from tests.oracle.rounding.test_rounded_attention import ORDERS, inputs


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
