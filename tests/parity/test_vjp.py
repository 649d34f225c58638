"""Every derivative against torch's autograd of the same formula: the layer itself, run on torch's tensors."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff import layers
from tests.layers.vjps import NAMES, differentiable, draw, gradients, no_targets

TOLERANCE = 1e-10


def tensors(args: tuple[Any, ...], where: list[tuple[int, str | None]]) -> list[Any]:
    """Put the arrays of a call into torch, those of `where` as leaves of the graph."""
    result: list[Any] = [
        {key: torch.tensor(value) for key, value in a.items()}
        if isinstance(a, dict)
        else torch.tensor(a)
        if isinstance(a, np.ndarray)
        else a
        for a in args
    ]
    for i, key in where:
        (result[i] if key is None else result[i][key]).requires_grad_()
    return result


def compare(name: str, seed: int, wrong: float = 0.0) -> float:
    """Return how far the vjp is from autograd, relative to the largest entry of each gradient."""
    args, options = draw(name, seed)
    where = differentiable(name, args)
    inputs = tensors(args, where)
    value = getattr(layers, name)(*inputs, **options)
    g = np.random.default_rng(seed).normal(size=tuple(value.shape))
    if no_targets(name, args):
        (zero,) = gradients(name, args, getattr(layers, f"{name}_vjp")(np.asarray(g), *args, **options))
        assert torch.isnan(value)
        return float(np.abs(zero).max(initial=0))
    assert torch.isfinite(value).all()
    value.backward(torch.tensor(g))
    ours = gradients(name, args, getattr(layers, f"{name}_vjp")(np.asarray(g), *args, **options))
    worst = 0.0
    for (i, key), gradient in zip(where, ours, strict=True):
        leaf = inputs[i] if key is None else inputs[i][key]
        expected = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
        assert gradient.shape == expected.shape
        error = np.abs((1 + wrong) * gradient - expected).max(initial=0)
        worst = max(worst, error / max(np.abs(expected).max(initial=0), 1e-6))
    return worst


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=max(220, 7 * settings().max_examples))
@given(seed=st.integers(0, 10**6))
def test_derivative_is_autograds(name: str, seed: int) -> None:
    assert compare(name, seed) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_a_thousandth_is_seen(name: str) -> None:
    assert max(compare(name, seed, wrong=1e-3) for seed in range(5)) > TOLERANCE
