"""The other layers, as a kernel has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.oracle import Recipe
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.evaluation_order import Order
from refdiff.oracle.rounding.rounded_layers import rounded_ops

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
def test_is_the_layer_up_to_rounding(name: str, args: tuple[Any, ...], options: dict[str, Any], order: Order) -> None:
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
