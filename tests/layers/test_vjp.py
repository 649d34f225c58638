"""Derivatives against central differences along random directions, and on every place an array can live."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff import layers
from refdiff.layers.activation import NAMES as ACTIVATIONS
from tests.layers.vjps import DRAWS, NAMES, differentiable, draw, gradients, label, no_targets

STEP = 2e-4  # of the size of what is moved
ROUGH = 1e-8  # what four evaluations in float64 can tell of a slope: the next term of the series, STEP⁴ f⁗′/30

FLAT = 1e-4  # in units of ROUGH: where σ, erf or exp is flat, it is off by a roundoff of 1, not of itself


def upstream(value: np.ndarray, seed: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=np.shape(value)))


def moved(name: str, args: tuple[Any, ...], direction: list[np.ndarray], by: float) -> tuple[Any, ...]:
    """Move the arrays that have a derivative along `direction`."""
    result = [dict(a) if isinstance(a, dict) else a for a in args]
    for (i, key), way in zip(differentiable(name, args), direction, strict=True):
        if key is None:
            result[i] = args[i] + by * way
        else:
            result[i][key] = args[i][key] + by * way
    return tuple(result)


def slopes(name: str, seed: int, wrong: float = 0.0) -> tuple[float, float, float]:
    """Return Σ g ∂f along a random direction, by differences (of fourth order) and by the vjp, and their scale."""
    args, options = draw(name, seed)
    layer, vjp = getattr(layers, name), getattr(layers, f"{name}_vjp")
    value = layer(*args, **options)
    g = upstream(value, seed)
    if no_targets(name, args):
        (zero,) = gradients(name, args, vjp(g, *args, **options))
        assert np.isnan(value)
        assert zero.shape == args[0].shape
        return 0.0, float(np.abs(zero).max(initial=0)), 1.0
    assert np.isfinite(value).all()
    where = differentiable(name, args)
    arrays = [args[i] if key is None else args[i][key] for i, key in where]
    direction = [np.abs(a).max(initial=0) * upstream(a, seed + 1 + n) for n, a in enumerate(arrays)]
    f = {n: layer(*moved(name, args, direction, n * STEP), **options) for n in (-2, -1, 1, 2)}
    by_difference = float(np.sum(g * (8 * (f[1] - f[-1]) - (f[2] - f[-2])))) / (12 * STEP)
    found = gradients(name, args, vjp(g, *args, **options))
    assert [np.shape(d) for d in found] == [a.shape for a in arrays]
    terms = [d * w for d, w in zip(found, direction, strict=True)]
    scale = float(sum(np.sum(np.abs(t)) for t in terms)) + float(np.sum(np.abs(g * value))) + 1e-300
    if name in ("activation", "swiglu"):
        scale += FLAT * float(np.sum(np.abs(g))) * max(float(np.abs(a).max(initial=0)) for a in arrays)
    return by_difference, (1 + wrong) * float(sum(np.sum(t) for t in terms)), scale


@pytest.mark.no_arrays
def test_every_derivative_has_draws() -> None:
    assert set(NAMES) <= set(DRAWS)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10**6))
def test_derivative_by_differences(name: str, seed: int) -> None:
    expected, actual, scale = slopes(name, seed)
    assert abs(actual - expected) <= ROUGH * scale, f"{label(name, *draw(name, seed))}: {actual}, not {expected}"


@pytest.mark.parametrize("name", NAMES)
def test_the_check_sees_an_error_of_a_thousandth(name: str) -> None:
    results = (slopes(name, seed, wrong=1e-3) for seed in range(20))
    assert any(abs(actual - expected) > ROUGH * scale for expected, actual, scale in results)


@pytest.mark.no_arrays
@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_g_and_those_of_the_layer(name: str) -> None:
    layer, vjp = (inspect.signature(getattr(layers, n)).parameters for n in (name, f"{name}_vjp"))
    assert next(iter(vjp)) == "g"
    positional = [n for n, p in layer.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert [n for n in vjp if n in positional] == positional
    assert [layer[n].default for n in positional] == [vjp[n].default for n in positional]
    choices = [n for n in layer if n not in positional and not callable(layer[n].default)]
    assert [layer[n].default for n in choices] == [vjp[n].default for n in choices]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "rope"])
def test_a_gradient_of_another_shape_is_refused(name: str) -> None:
    args, options = next((a, o) for a, o in (draw(name, s) for s in range(9)) if a[0].size)
    shape = (*np.shape(getattr(layers, name)(*args, **options)), 2)
    with pytest.raises(ValueError, match=rf"^{name}_vjp: g: got shape \("):
        getattr(layers, f"{name}_vjp")(np.zeros(shape), *args, **options)


def test_a_rope_gradient_of_another_shape_is_refused() -> None:
    args, options = draw("rope", 0)
    with pytest.raises(ValueError, match=r"rope_vjp: g: got shape \(1,\), expected"):
        layers.rope_vjp(np.zeros(1), *args, **options)


def test_an_unknown_activation_is_refused_with_the_known_ones() -> None:
    known = ", ".join(ACTIVATIONS)
    with pytest.raises(ValueError, match=f"^activation_vjp: name: got 'swishy', expected one of {known}$"):
        layers.activation_vjp(np.ones(1), np.ones(1), "swishy")


def test_hidden_keys_get_no_gradient() -> None:
    q, k, v = (np.random.default_rng(i).normal(size=(1, 2, 3, 4)) for i in range(3))
    mask = np.array([True, False, True])
    g = np.ones((1, 2, 3, 4))
    _, dk1, _, dk2, dv, _ = layers.diff_attention_vjp(g, q, k, q[::-1], k, v, np.asarray(0.5), mask)
    for d in (dk1, dk2, dv):
        assert (d[:, :, 1] == 0).all()
        assert (d[:, :, [0, 2]] != 0).any()
