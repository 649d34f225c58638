"""Emulated layers: near the layer and its derivative in every order, and where float16 scores overflow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.oracle import Recipe, Spec, truth
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import DRAWS, HELD_OUT, MEMBERS, Arithmetic, Order, sum_error
from refdiff.oracle.rounding.rounded_attention import rounded_attention, rounded_attention_vjp
from refdiff.oracle.rounding.rounded_layers import rounded_ops

ORDERS = (*MEMBERS, *DRAWS, *HELD_OUT)
UNITS = {"float32": 2.0**-23, "tf32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def inputs(storage: str, H: int = 4, K: int = 2, T: int = 19, S: int = 23, d: int = 8, e: int = 12) -> tuple[Any, ...]:
    rng = np.random.default_rng(7)
    shapes = [(2, H, T, d), (2, K, S, d), (2, H, T, d), (2, K, S, d), (2, K, S, e)]
    return *(round_to(rng.normal(size=s), storage) for s in shapes), np.asarray(0.625)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("recipe", UNITS)
def test_is_the_layer_up_to_rounding(order: Order, recipe: str) -> None:
    x = inputs(Recipe.of(recipe).storage)
    u = UNITS[recipe]
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


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("recipe", UNITS)
def test_is_the_derivative_up_to_rounding(order: Order, recipe: str) -> None:
    x = inputs(Recipe.of(recipe).storage)
    u = UNITS[recipe]
    g = np.random.default_rng(8).integers(-8, 9, (2, 4, 19, 12)) / 8.0
    got = rounded_attention_vjp(Arithmetic(Recipe.of(recipe), order), g, *x)
    want = layers.diff_attention_vjp(g, *x)
    for mine, right in zip(got[:5], want[:5], strict=True):
        assert mine.shape == right.shape
        off = np.sqrt(np.mean((mine - right) ** 2)) / np.sqrt(np.mean(right**2))
        assert 0.05 * u < off < 6 * u
    size = np.sqrt(np.sum((g * layers.diff_attention(*x[:5], np.asarray(0.0))) ** 2))
    of_order = 4 * sum_error(g.size) if order.noise else 0.0  # kernels add the terms in any order
    assert abs(got[5] - want[5]) < (6 * u + of_order) * size


@pytest.mark.parametrize("order", [order for order in DRAWS if order.subtract == "outputs"], ids=str)
def test_errors_of_a_recomputed_weight_do_not_cancel(order: Order) -> None:
    rng = np.random.default_rng(5)
    k = np.eye(64)[None, None]
    q = 300 * math.sqrt(64) * k  # each query sees one key, with a score of 300, in 1 to 64 of the partial sums
    spec = Spec.preset("attention", query_heads=1, key_heads=1, head_dim=64, causal="none")
    x, dout = {"q": q, "k": k, "v": rng.normal(size=k.shape)}, rng.normal(size=k.shape)
    got = evaluate(spec, x, Recipe("float32"), order, dout)["dv"]
    want = truth(spec, x, dout=dout).grads["v"]
    relative = np.sqrt(np.mean((got - want) ** 2, axis=-1) / np.mean(want**2, axis=-1))
    one_rounding = 300 * 2.0**-25
    assert np.min(relative) > one_rounding
    assert np.max(relative) < 30 * one_rounding


# The other layers, as a kernel has them

STORED = Order("", stored=True)
FUSED = Order("")
RNG = np.random.default_rng(2)
X = round_to(RNG.normal(size=(2, 3, 5, 8)), "bfloat16")
G = round_to(RNG.normal(size=(2, 3, 5, 8)), "bfloat16")
WEIGHT = round_to(RNG.normal(size=8) + 1.5, "bfloat16")
COS, SIN = layers.rope_cos_sin(np.arange(5)[None] + 3, [1.0, 0.1, 0.01], 1.0, np.float64)
VECTORS = [round_to(0.3 * RNG.normal(size=8), "bfloat16") for _ in range(4)]
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("linear", (X[0], round_to(RNG.normal(size=(7, 8)), "bfloat16"), round_to(RNG.normal(size=7), "bfloat16")), {}),
    ("rope_cos_sin", (np.arange(5)[None], [1.0, 0.1], 1.0, np.float64), {}),
    ("rope", (X, COS, SIN), {}),
    ("rope", (X, COS, SIN), {"interleaved": True}),
    ("rope_vjp", (G, X, COS, SIN), {"interleaved": True}),
    ("diff_lambda", (*VECTORS, 0.4), {}),
    ("diff_lambda_v2", (X[0], round_to(RNG.normal(size=(7, 8)), "bfloat16")), {}),
    ("activation_vjp", (G, X, "sigmoid"), {}),
    ("activation_vjp", (G, X, "silu"), {}),
    ("rms_norm", (X, WEIGHT, 1e-5), {}),
    ("rms_norm", (X, None, 1e-5), {}),
    ("rms_norm_vjp", (G, X, WEIGHT, 1e-5), {}),
    ("rms_norm_vjp", (G, X, None, 1e-5), {}),
]


@pytest.mark.parametrize("order", [STORED, FUSED], ids=["stored", "fused"])
@pytest.mark.parametrize(("name", "args", "options"), CALLS)
def test_other_layers_are_the_same(name: str, args: tuple[Any, ...], options: dict[str, Any], order: Order) -> None:
    got = getattr(rounded_ops(Recipe("bf16"), order), name)(*args, **options)
    want = getattr(layers, name)(*args, **options)
    mine, right = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    assert len(mine) == len(right)
    for a, b in zip(mine, right, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            assert a.dtype == np.float64
            assert np.max(np.abs(a - b)) <= 6 * 2.0**-8 * np.max(np.abs(b))
