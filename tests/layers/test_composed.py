"""Layers that are composed of others: which they call, and that they call those of `ops`."""

import inspect
import itertools
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends import ops_for, overlay
from tests.layers.vjps import draw
from tests.tolerances import EXACT, close


def operands(name: str) -> tuple[Any, ...]:
    """Draw the arguments of a layer for several tokens; of a derivative, a gradient before them."""
    layer = name.removesuffix("_vjp")
    for seed in itertools.count():
        args, _ = draw(layer, seed)
        shape = getattr(layers, layer)(*args).shape
        if len(shape) > 1 and shape[-2] > 1:
            break
    return args if layer == name else (np.random.default_rng(seed).normal(size=shape), *args)


OPERANDS = {name: operands(name) for name in sorted(layers.COMPOSED)}


def parts_of(name: str) -> set[str]:
    """All that a layer calls, by the table, directly and through others."""
    direct = layers.COMPOSED.get(name, ())
    return set(direct).union(*map(parts_of, direct))


@pytest.mark.no_arrays
def test_the_table_names_every_layer_that_takes_ops() -> None:
    others = set(layers.__all__) - set(layers.COMPOSED)
    for name in sorted(others):
        with pytest.raises(TypeError):
            getattr(layers, name)(ops=layers)


@pytest.mark.parametrize("name", OPERANDS)
def test_a_plain_closure_sees_what_the_table_says_and_changes_no_bit(name: str) -> None:
    seen: list[str] = []
    ops = overlay(ops_for(), lambda part, f: lambda *args, **options: (seen.append(part), f(*args, **options))[1])
    result = getattr(layers, name)(*OPERANDS[name], ops=ops)
    assert set(seen) == parts_of(name)
    for whole, part in (("attention_weights", "softmax"), ("attention_weights_vjp", "softmax_vjp")):
        if whole in seen:
            assert seen.count(part) == seen.count(whole), "each map goes through ops"
    for one, other in zip(arrays_in(result), arrays_in(getattr(layers, name)(*OPERANDS[name])), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layer", ["diff_heads_hf", "diff_heads_paper"])
def test_heads_that_are_computed_again_call_ops(layer: str) -> None:
    seen: list[str] = []
    ops = overlay(ops_for(), lambda part, f: lambda *args, **options: (seen.append(part), f(*args, **options))[1])
    getattr(layers, f"{layer}_vjp")(*OPERANDS[f"{layer}_vjp"], ops=ops)
    assert "softmax" in seen[seen.index("diff_attention") : seen.index("rms_norm_vjp")]


SAVED = {"attention_weights": "attention_weights", "swiglu": "linear"}
"""What the derivative of a layer would compute again; of the heads it is `diff_attention`."""


@pytest.mark.parametrize(
    "layer",
    [name.removesuffix("_vjp") for name in OPERANDS if "saved" in inspect.signature(getattr(layers, name)).parameters],
)
def test_saved_values_are_not_computed_again(layer: str) -> None:
    seen: list[tuple[str, Any]] = []

    def recorded(part: str, f: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            seen.append((part, f(*args, **options)))
            return seen[-1][1]

        return call

    ops, again = overlay(ops_for(), recorded), SAVED.get(layer, "diff_attention")
    g, *operands = OPERANDS[f"{layer}_vjp"]
    result = getattr(layers, layer)(*operands, ops=ops)
    kept = [value for part, value in seen if part == again]
    saved = result if layer == again else tuple(kept[:2]) if layer == "swiglu" else kept[0]
    seen.clear()
    gradients = getattr(layers, f"{layer}_vjp")(g, *operands, saved=saved, ops=ops)
    assert again not in [part for part, _ in seen]
    for one, other in zip(arrays_in(gradients), arrays_in(getattr(layers, f"{layer}_vjp")(g, *operands)), strict=True):
        close(one, other, EXACT)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layer", ["diff_attention", "plain_heads"])
def test_a_replacement_that_ignores_saved_maps_gets_what_it_computes_them_of(layer: str, causal: bool) -> None:
    rng = np.random.default_rng(0)
    q, k, v, mask, bias = (rng.normal(size=(2, 2, 3, 5)) for _ in range(5))
    seen = {"mask": mask[..., :3] < 1, "bias": bias[..., :3], "causal": causal}
    operands = (q, k, v) if layer == "plain_heads" else (q, k, q[::-1], k[::-1], v, np.asarray(0.7))
    g = rng.normal(size=getattr(layers, layer)(*operands).shape)

    def again(part: str, f: Any) -> Any:
        return (lambda *args, saved, **options: f(*args, **options)) if part == "attention_weights_vjp" else f

    derivative = getattr(layers, f"{layer}_vjp")
    ignored = derivative(g, *operands, **seen, ops=overlay(ops_for(), again))
    for one, other in zip(ignored, derivative(g, *operands, **seen), strict=True):
        close(one, other, EXACT)


def arrays_in(x: Any) -> list[Any]:
    """The arrays of nested results."""
    if isinstance(x, dict):
        return [a for value in x.values() for a in arrays_in(value)]
    return [a for value in x for a in arrays_in(value)] if isinstance(x, tuple) else [x] if x is not None else []
