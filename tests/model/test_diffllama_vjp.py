"""The backward pass of a decoder, a layer and its attention, each by itself; whole models are in test_trainable.py."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.backends import overlay
from refdiff.model import diffllama, diffllama_vjp, weights
from tests.backends.tuned import tune
from tests.model.models import WIRINGS, ids, small_model

IDS = ids(0, 2, 5)


def parts(wiring: str) -> tuple[Any, Any, Any]:
    """A base model's parameters, embeddings (B, T, D) and context."""
    model = small_model(refdiff.DiffLlamaModel, wiring=wiring)
    hidden, context = model._embed(IDS, None, None, None, None, False)
    return model.params, hidden, context


@pytest.mark.parametrize("wiring", WIRINGS)
def test_results_are_those_of_the_plain_forward(wiring: str) -> None:
    p, x, context = parts(wiring)
    layer = p["layers"][1]
    for ours, plain in (
        (diffllama_vjp.diffllama(p, x, context), diffllama.diffllama(p, x, context)),
        (diffllama_vjp.decoder_layer(layer, x, 1, context), diffllama.decoder_layer(layer, x, 1, context)),
        (
            diffllama_vjp.ATTENTION[wiring](layer["self_attn"], x, 1, context),
            diffllama.ATTENTION[wiring](layer["self_attn"], x, 1, context),
        ),
    ):
        np.testing.assert_array_equal(ours[0], plain)


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("part", ["diffllama", "decoder_layer", "attention"])
def test_slopes(part: str, wiring: str) -> None:
    """Along random directions in the input and in all parameters, against central differences."""
    p, x, context = parts(wiring)
    p = p if part == "diffllama" else p["layers"][2] if part == "decoder_layer" else p["layers"][2]["self_attn"]
    place = () if part == "diffllama" else (2,)
    flat = {n: a for n, a in weights.flatten(p).items() if n != "embed_tokens.weight"}
    rng = np.random.default_rng(1)
    g = rng.normal(size=x.shape)
    way = {name: rng.normal(size=a.shape) * np.abs(a).max() for name, a in flat.items()}
    way_x = rng.normal(size=x.shape) * np.abs(x).max()

    def function(module: Any) -> Any:
        return module.ATTENTION[wiring] if part == "attention" else getattr(module, part)

    def at(by: float) -> float:
        moved = weights.nest({name: a + by * way[name] for name, a in flat.items()})
        return float(np.sum(g * function(diffllama)(moved, x + by * way_x, *place, context)))

    _, back = function(diffllama_vjp)(p, x, *place, context)
    dx, grads = back(g)
    grads = weights.flatten(grads)
    assert set(grads) == set(flat)
    terms = [np.sum(dx * way_x), *(np.sum(grads[name] * way[name]) for name in flat)]
    h = 3e-5
    by_difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    assert abs(by_difference - sum(terms)) <= 1e-8 * sum(abs(t) for t in terms)


def test_the_way_back_lets_go_of_what_it_used() -> None:
    """Of the results of the way forward, fewer are alive each time that the way back comes to another layer."""
    p, x, context = parts("hf")
    results: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def watched(name: str, function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "swiglu_vjp":
                alive.append(sum(result() is not None for result in results))
            result = function(*args, **kwargs)
            if name in ("linear", "rms_norm", "diff_attention"):
                results.append(weakref.ref(result))
            return result

        return call

    context.ops = overlay(context.ops, watched)
    _, back = diffllama_vjp.diffllama(p, x, context)
    back(np.ones_like(x))
    assert len(alive) == 3
    assert alive[0] > alive[1] > alive[2]


def test_the_backward_pass_has_whole_products_where_the_forward_pass_takes_chunks() -> None:
    _, expected = small_model(kernels="reference").loss_and_grad(IDS, labels=IDS)
    model = small_model()
    tune(model.backend.kernels, mlp_tokens=3)
    _, grads = model.loss_and_grad(IDS, labels=IDS)
    found = weights.flatten(grads)
    for name, grad in weights.flatten(expected).items():
        np.testing.assert_allclose(found[name], grad, rtol=1e-9, atol=1e-12)
