"""The other layers, as a kernel has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.oracle import Recipe
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.evaluation_order import DRAWS, MEMBERS, Order
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


@pytest.mark.parametrize("head_dim", [16, 96])
@pytest.mark.parametrize("order", DRAWS, ids=[o.name for o in DRAWS])
def test_draws_allow_for_other_frequencies_in_float32(order: Order, head_dim: int) -> None:
    """Frameworks have θ^(−2i/d), its inverse's inverse, or an exponential; they differ in the last digits."""
    parameters, positions = {"rope_theta": 10_000.0}, np.arange(64)[None]
    exact, scale = layers.rope_frequencies(parameters, head_dim, 1)
    ops = rounded_ops(Recipe("float32"), order)
    drawn, _ = ops.rope_frequencies(parameters, head_dim, 1)
    assert drawn[0] == 1.0, "1 is 1 however it is computed"
    off = np.abs(np.divide(drawn, exact) - 1)[1:]
    assert np.all(off > 0.5 * 2.0**-24)
    assert np.all(off < 8 * 2.0**-24)
    cos, sin = ops.rope_cos_sin(positions, drawn, scale, np.float64)
    right = layers.rope_cos_sin(positions, exact, scale, np.float64)
    usual = np.hypot(cos - right[0], sin - right[1])
    power = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    ways = (np.float32(1) / np.float32(1e4) ** power, np.float32(1e4) ** -power,
            np.exp(-power * np.log(np.float32(1e4))), np.exp2(-power * np.log2(np.float32(1e4))))  # fmt: skip
    for frequencies in ways:
        assert frequencies.dtype == np.float32
        turns = (positions[0, :, None].astype(np.float32) * frequencies).astype(np.float64)
        error = np.hypot(np.cos(turns) - right[0], np.sin(turns) - right[1])
        by_position = np.sqrt(np.mean(error**2, axis=-1)), np.sqrt(np.mean(usual**2, axis=-1))
        assert np.all(by_position[0] <= 2 * by_position[1])


def test_lambda_allows_for_partial_sums_that_cancel() -> None:
    """Dot products of order 1 whose terms are of order 100: most of λ's error in float32 is that of the sums."""
    rng, off, usual = np.random.default_rng(5), [], []
    one = next(o for o in MEMBERS if o.shift == 1.0 and not o.stored)
    zero = Order("", terms=one.terms)
    for _ in range(200):
        q1, q2, k1, k2 = rng.normal(size=(4, 16)) * 10.0
        k1, k2 = (k - q * (k @ q - 0.1) / (q @ q) for q, k in ((q1, k1), (q2, k2)))
        x = [round_to(a, "float32") for a in (q1, k1, q2, k2)]
        exact = float(layers.diff_lambda(*x, 0.4))
        got = [float(rounded_ops(Recipe("float32"), o).diff_lambda(*x, 0.4)) for o in (zero, one)]
        logs = [(q * k).astype(np.float32).cumsum(dtype=np.float32)[-1] for q, k in (x[:2], x[2:])]
        off.append(np.exp(logs[0]) - np.exp(logs[1]) + np.float32(0.4) - exact)
        usual.append(got[1] - got[0])
    ratio = np.sqrt(np.mean(np.square(off) / np.square(usual)))
    assert 0.3 < ratio < 1.3
