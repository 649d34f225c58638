"""Random calls of every layer that has a derivative, for the checks by differences here and by torch in parity."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refdiff import layers
from refdiff.layers.activation import NAMES as ACTIVATIONS

Call = tuple[tuple[Any, ...], dict[str, Any]]

KINKS: dict[str, dict[float, float]] = {
    "gelu_10": {10.0: 1.0}, "hardswish": {-3.0: 0.0, 3.0: 1.0}, "leaky_relu": {0.0: 0.01}, "prelu": {0.0: 0.25},
    "relu": {0.0: 0.0}, "relu2": {0.0: 0.0}, "relu6": {0.0: 0.0, 6.0: 0.0},
}  # fmt: skip
"""Where the slope of an activation jumps or bends, so that differences tell nothing; and the one that torch takes."""
STEEP = {"laplace": 1}
"""The size of numbers that are drawn, where it is not 3: laplace rises within 0.3, and bends within longer steps."""

NAMES = sorted(name.removesuffix("_vjp") for name in layers.__all__ if name.endswith("_vjp"))


def draw(name: str, seed: int, **fixed: Any) -> Call:
    """Draw sizes, masks, groupings and values of one call of layer `name`, but what is `fixed`."""
    assert name in DRAWS, f"tests/layers/vjps.py has no function {name} that draws the arguments of this layer"
    return DRAWS[name](np.random.default_rng([seed, sum(map(ord, name))]), **fixed)


def label(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    """The name of a layer, and the activation of a call that has one."""
    return "-".join([name, *(x for x in (*args, *options.values()) if isinstance(x, str))])


def leading(g: np.random.Generator) -> tuple[int, ...]:
    return tuple(g.integers(1, 4, size=g.integers(0, 3)).tolist())


def sizes(g: np.random.Generator, n: int) -> list[int]:
    """Small ones, and of one in eight draws one that is not."""
    drawn = g.integers(1, 8, size=n)
    if g.random() < 1 / 8:
        drawn[g.integers(n)] = g.integers(8, 100)
    return [int(x) for x in drawn]


def optional(g: np.random.Generator, x: Any) -> Any:
    return x if g.random() < 0.5 else None


def linear(g: np.random.Generator) -> Call:
    i, o = sizes(g, 2)
    return (g.normal(size=(*leading(g), i)), g.normal(size=(o, i)), optional(g, g.normal(size=o))), {}


def embedding(g: np.random.Generator) -> Call:
    v, width = sizes(g, 2)
    return (g.integers(0, v, size=leading(g)), g.normal(size=(v, width))), {}


def rms_norm(g: np.random.Generator) -> Call:
    width = 1 + sizes(g, 1)[0]  # a row of one number is normed to ±1: its slope is what ε leaves after cancelling
    scale, eps = float(10.0 ** g.integers(-3, 2)), float(10.0 ** g.integers(-6, -1))
    x = g.normal(size=(*leading(g), width))
    x *= scale * g.uniform(0.5, 2.0) / np.sqrt(np.mean(x * x, axis=-1, keepdims=True))  # no row bends within a step
    return (x, optional(g, g.normal(size=width)), eps), {}


def rope(g: np.random.Generator) -> Call:
    b, h, t, n, rest = sizes(g, 5)
    angles = g.normal(size=(1 if g.random() < 0.5 else b, 1, t, n))
    x = g.normal(size=(b, h, t, 2 * n + rest - 1))
    options = {"interleaved": bool(g.random() < 0.5)}
    if n == 1 and not options["interleaved"]:
        x = x[..., :1]  # a head of one dimension
    return (x, np.cos(angles), np.sin(angles)), options


def softmax(g: np.random.Generator) -> Call:
    shape = (*leading(g), *sizes(g, 1))
    return (3 * g.normal(size=shape), optional(g, g.random(shape) < 0.7)), {}


def diff_lambda(g: np.random.Generator) -> Call:
    (width,) = sizes(g, 1)
    return (*(0.5 * g.normal(size=(4, width))), float(g.uniform(0.2, 0.8))), {}


def attention(g: np.random.Generator, pairs: int = 1) -> tuple[list[Any], dict[str, Any], tuple[int, ...]]:
    """Queries, keys, a mask or none, a bias or none, and (B, H, K, T, S) for `pairs` maps in one array."""
    b, k = g.integers(1, 4, size=2).tolist()
    t, past, d = sizes(g, 3)
    h, s = k * int(g.integers(1, 4)), t + past - 1
    q, key = g.normal(size=(b, pairs * h, t, d)), g.normal(size=(b, pairs * k, s, d))
    rows = 2 * h if g.random() < 0.3 else 1
    mask = optional(g, g.random((b, rows, t if g.random() < 0.5 else 1, s)) < 0.8)
    bias = optional(g, g.normal(size=(1, rows, t, s)))
    return [q, key, mask, bias], {"causal": bool(g.random() < 0.7)}, (b, h, k, t, s)


def diff_attention(g: np.random.Generator) -> Call:
    (q, key, mask, bias), options, (b, h, k, t, s) = attention(g)
    v = g.normal(size=(b, k, s, g.integers(1, 6)))
    lambda_ = g.normal(size=[(), (b, h, t, 1), (h, 1, 1), (1, h, 1, 1)][g.integers(4)])
    return (q, key, g.normal(size=q.shape), g.normal(size=key.shape), v, np.asarray(lambda_), mask, bias), options


def diff_heads_hf(g: np.random.Generator) -> Call:
    # an ε so large that a head whose maps nearly cancel does not bend within a step of the differences
    (q, key, mask, bias), options, (b, _, k, _, s) = attention(g, pairs=2)
    v = g.normal(size=(b, k, s, 2 * q.shape[3]))
    return (q, key, v, np.asarray(g.normal()), float(g.uniform(0.2, 0.8)), 0.1, mask, bias), options


def diff_heads_paper(g: np.random.Generator) -> Call:
    (q, key, mask, bias), options, (b, _, k, _, s) = attention(g, pairs=2)
    e = 2 * q.shape[3]
    v, weight = g.normal(size=(b, k, s, e)), g.normal(size=e)
    return (q, key, v, np.asarray(g.normal()), weight, float(g.uniform(0.2, 0.8)), 0.1, mask, bias), options


def diff_heads_v2(g: np.random.Generator) -> Call:
    (q, key, mask, bias), options, (b, h, _, t, _) = attention(g)
    q = np.concatenate([q, g.normal(size=q.shape)], axis=1)
    return (q, key, g.normal(size=key.shape), g.uniform(size=(b, h, t, 1)), mask, bias), options


def diff_lambda_v2(g: np.random.Generator) -> Call:
    b, t, h, width = sizes(g, 4)
    return (g.normal(size=(b, t, width)), g.normal(size=(h, width))), {}


def attention_weights(g: np.random.Generator) -> Call:
    (q, key, mask, bias), options, (_, h, *_) = attention(g)
    return (q, key, *(None if x is None else x[:, :h] for x in (mask, bias))), options


def plain_heads(g: np.random.Generator) -> Call:
    (q, key, mask, bias), options, (b, h, k, _, s) = attention(g)
    e = int(g.integers(1, 6))
    return (q, key, g.normal(size=(b, k, s, e)), *(None if x is None else x[:, :h] for x in (mask, bias))), options


def value_pairs_hf(g: np.random.Generator) -> Call:
    b, k, t, d = sizes(g, 4)
    return (g.normal(size=(b, 2 * k, t, d)),), {}


def an_activation(g: np.random.Generator) -> str:
    return ACTIVATIONS[g.integers(len(ACTIVATIONS))]


def own_weight(act: str) -> list[np.ndarray]:
    """The weight that prelu has, as an argument."""
    return [np.array([0.25])] if act == "prelu" else []


def activation(g: np.random.Generator, act: str | None = None) -> Call:
    act = act or an_activation(g)
    x = STEEP.get(act, 3) * g.normal(size=(*leading(g), 5))
    for kink in KINKS.get(act, {}):
        x = np.where(np.abs(x - kink) < 0.1, kink + 0.2, x)
    return (x, act, *own_weight(act)), {}


def projection(g: np.random.Generator, shape: tuple[int, int], scale: float = 1.0) -> dict[str, Any]:
    drawn = {"weight": scale * g.normal(size=shape), "bias": optional(g, g.normal(size=shape[0]))}
    return {name: value for name, value in drawn.items() if value is not None}


def swiglu(g: np.random.Generator, act: str | None = None) -> Call:
    width, inner = sizes(g, 2)
    x, act = g.normal(size=(*leading(g), width)), act or an_activation(g)
    scale = STEEP.get(act, 3) / width**0.5
    gate, up = projection(g, (inner, width), scale), projection(g, (inner, width))
    down = projection(g, (width, inner))
    for _ in range(100):
        at = (x @ gate["weight"].T + gate.get("bias", 0.0)).reshape(-1, inner, 1)
        near = (np.abs(at - np.array([*KINKS.get(act, {})])) < 0.1).any(axis=(0, 2))
        # where all are far below 0, results and slopes are what rounding left of 1 − 1
        bad = near if near.any() else np.full(inner, not (at > 0).any())
        if not bad.any():
            break
        gate["weight"][bad] = scale * g.normal(size=(bad.sum(), width))
    else:
        act = "silu"  # x is so small that the gate is that of the bias, whatever the weight
    return (x, gate, up, down, *({"weight": weight} for weight in own_weight(act))), {"act": act}


def cross_entropy(g: np.random.Generator) -> Call:
    rows, (classes,) = leading(g), sizes(g, 1)
    targets = g.integers(0, classes, size=rows)
    return (2 * g.normal(size=(*rows, classes)), np.where(g.random(rows) < 0.3, -100, targets)), {}


DRAWS: dict[str, Callable[..., Call]] = {name: globals()[name] for name in NAMES if name in globals()}


def differentiable(name: str, args: tuple[Any, ...]) -> list[tuple[int, str | None]]:
    """List where the arrays stand that have a derivative: an argument's index, and a key where it is a dict."""
    names = list(inspect.signature(getattr(layers, name)).parameters)
    without = ("mask", "bias") if "mask" in names else ("cos", "sin")
    where: list[tuple[int, str | None]] = []
    for i, a in enumerate(args):
        if isinstance(a, Mapping):
            where += [(i, key) for key in a]
        elif isinstance(a, np.ndarray) and a.dtype.kind == "f" and names[i] not in without:
            where.append((i, None))
    return where


def no_targets(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a call is a loss over no targets: the one result that may be NaN, and its gradient is zero."""
    return name == "cross_entropy" and bool((args[1] == -100).all())


def gradients(name: str, args: tuple[Any, ...], result: tuple[Any, ...]) -> list[Any]:
    """Pick from what `<name>_vjp` gave the gradients of `differentiable`, and fail if it gave others too."""
    arrays = [i for i, a in enumerate(args) if isinstance(a, (np.ndarray, Mapping))]
    takes_none = {"rms_norm": 2, "linear": 3}.get(name)
    order = list(range(takes_none)) if takes_none else arrays
    given = {i: result[n] for n, i in enumerate(order[: len(result)])}
    wanted = differentiable(name, args)
    have, want = {i for i, value in given.items() if value is not None}, {i for i, _ in wanted}
    assert have == want, f"{name}_vjp gives gradients of the arguments {have}, expected {want}, counted from 0"
    return [given[i] if key is None else given[i][key] for i, key in wanted]
