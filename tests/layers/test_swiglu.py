"""W_down(act(W_gate x) ⊙ W_up x)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import swiglu, swiglu_vjp
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS
from tests.tolerances import EXACT, FLOAT64, close

D, F = 5, 7


def weights(rng: np.random.Generator, bias: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """The `mlp` of a checkpoint."""
    shapes = {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
    p = {name: {"weight": rng.normal(size=shape)} for name, shape in shapes.items()}
    if bias:
        for name, shape in shapes.items():
            p[name]["bias"] = rng.normal(size=shape[0])
    return p


def test_by_hand() -> None:
    gate, up, down = np.array([[1.0], [-1.0]]), np.array([[2.0], [5.0]]), np.array([[3.0, 100.0]])
    p = {"gate_proj": {"weight": gate}, "up_proj": {"weight": up}, "down_proj": {"weight": down}}
    # x = 7: gate 7, −7; up 14, 35; with relu the second unit is off: 3 · 7 · 14
    close(swiglu(np.array([[7.0]]), **p, act="relu"), np.array([[294.0]]), FLOAT64)
    # x = −2: gate −2, 2; up −4, −10: 100 · 2 · (−10)
    close(swiglu(np.array([[-2.0]]), **p, act="relu"), np.array([[-2000.0]]), FLOAT64)
    # without a name it is silu
    close(swiglu(np.array([[7.0]]), **p), swiglu(np.array([[7.0]]), **p, act="silu"), EXACT)


def test_a_gradient_has_the_shape_of_the_result() -> None:
    rng = np.random.default_rng(0)
    x, p = rng.normal(size=(2, 3, D)), weights(rng)
    p["down_proj"]["weight"] = rng.normal(size=(D + 1, F))  # a result of another width than x
    dx, _, _, ddown = swiglu_vjp(np.ones((2, 3, D + 1)), x, **p)
    assert (dx.shape, ddown["weight"].shape) == (x.shape, (D + 1, F))
    with pytest.raises(ValueError, match=r"^swiglu_vjp: g: got shape \(2, 3, 5\), expected \(2, 3, 6\), that of the"):
        swiglu_vjp(np.ones(x.shape), x, **p)
    with pytest.raises(TypeError, match="list"):
        swiglu_vjp(np.ones((2, 3, D + 1)).tolist(), x, **p)


@given(SEEDS, st.integers(-3000, 3000).map(lambda n: n / 1000))  # no numbers without their digits
def test_is_linear_in_the_upper_and_the_outer_map(rng: np.random.Generator, c: float) -> None:
    x, p = rng.normal(size=(2, 3, D)), weights(rng)
    y = swiglu(x, **p)
    for name in ("up_proj", "down_proj"):
        close(swiglu(x, **p | {name: {"weight": c * p[name]["weight"]}}), c * y, FLOAT64)


@given(SEEDS)
def test_the_gate_alone_is_activated(rng: np.random.Generator) -> None:
    x, p = rng.normal(size=(2, 3, D)), weights(rng)
    # an identity for the activation makes gate and up alike
    swapped = p | {"gate_proj": p["up_proj"], "up_proj": p["gate_proj"]}
    close(swiglu(x, **swapped, act="linear"), swiglu(x, **p, act="linear"), FLOAT64)
    shut = p | {"gate_proj": {"weight": np.zeros((F, D))}}
    close(swiglu(x, **shut), np.zeros((2, 3, D)), EXACT)
    # σ(0) = 1/2 without an argument in front
    half = p["up_proj"]["weight"].T @ p["down_proj"]["weight"].T / 2
    close(swiglu(x, **shut, act="sigmoid"), x @ half, FLOAT64)


@given(SEEDS, st.sampled_from(["silu", "gelu", "relu2"]), st.booleans())
def test_precision(rng: np.random.Generator, act: str, bias: bool) -> None:
    x, p = rng.normal(size=(3, D)), weights(rng, bias)
    gate, up, down = ([exact(p[n][m]) for m in p[n]] for n in ("gate_proj", "up_proj", "down_proj"))
    upper, opened = by_loops.linear(exact(x), *up), by_loops.linear(exact(x), *gate)
    inner = by_loops.filled((3, F), lambda t, f: by_loops.ACTIVATIONS[act](opened[t, f]) * upper[t, f])
    close(swiglu(x, **p, act=act), rounded(by_loops.linear(inner, *down)), FLOAT64)
