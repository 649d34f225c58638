"""The feed-forward network and its backward pass: silu and its product with up, block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from refdiff.backends.numpy.gemm import linear, linear_vjp, linears, plan_products, run_plans
from refdiff.backends.numpy.half_weights import is_half
from refdiff.backends.numpy.layout import KERNEL_DTYPES, FloatArray, is_feature_major, same_dtype
from refdiff.backends.numpy.runtime import Runtime
from refdiff.layers.activation import ACTIVATIONS, silu
from refdiff.layers.linear import named_grads

Projection = Mapping[str, FloatArray]


def activation(rt: Runtime, x: FloatArray, name: str, weight: FloatArray | None = None) -> Any:
    """Compute silu, x / (1 + e^−x), block by block."""
    if ACTIVATIONS.get(name) is not silu or weight is not None or x.dtype not in KERNEL_DTYPES:
        return NotImplemented
    return _elementwise(rt, _silu, 1, x)[0]


def swiglu(
    rt: Runtime,
    x: FloatArray,
    gate_proj: Projection,
    up_proj: Projection,
    down_proj: Projection,
    act_fn: Projection | None = None,
    *,
    act: str = "silu",
) -> Any:
    """Compute down(silu(gate(x)) ⊙ up(x)), many tokens in chunks of `Tuning.mlp_tokens`."""
    float_weights = [w for p in (gate_proj, up_proj, down_proj) if not is_half(w := p["weight"])]
    if ACTIVATIONS.get(act) is not silu or act_fn is not None or not same_dtype(x, *float_weights):
        return NotImplemented
    if x.ndim < 1 or x.size == 0 or gate_proj["weight"].shape != up_proj["weight"].shape:
        return NotImplemented

    def chunk(x: FloatArray) -> Any:
        hidden = _gated_few(rt, x, gate_proj, up_proj)
        if hidden is NotImplemented:
            both = linears(rt, x, gate_proj, up_proj)
            if both is NotImplemented:
                return NotImplemented
            hidden = gated(rt, *both)
        return linear(rt, hidden, **down_proj)

    flat, size = x.reshape(-1, x.shape[-1]), rt.tuning.mlp_tokens
    if len(flat) < 2 * size:
        return chunk(x)
    first = chunk(flat[:size])
    if first is NotImplemented:
        return NotImplemented
    out = rt.empty((first.shape[-1], len(flat)), first.dtype).T
    out[:size] = first
    for start in range(size, len(flat), size):
        out[start : start + size] = chunk(flat[start : start + size])
    return out.reshape(*x.shape[:-1], -1)


def gated(rt: Runtime, gate: FloatArray, up: FloatArray) -> FloatArray:
    """Compute silu(gate) ⊙ up block by block."""
    return _elementwise(rt, _gated, 1, gate, up)[0]


def swiglu_vjp(
    rt: Runtime,
    g: FloatArray,
    x: FloatArray,
    gate_proj: Projection,
    up_proj: Projection,
    down_proj: Projection,
    act_fn: Projection | None = None,
    *,
    act: str = "silu",
    saved: tuple[FloatArray, FloatArray] | None = None,
) -> Any:
    """Compute silu and its derivative block by block: with s = σ(a), silu′(a) = s (1 + a (1 − s)).

    Feature-major gradients go back through both projections in one product, Gₐ Wₐ + G_u W_u = [Gₐ G_u] [Wₐ; W_u].
    """
    projections = gate_proj, up_proj
    if ACTIVATIONS.get(act) is not silu or not same_dtype(g, x, *(p["weight"] for p in (*projections, down_proj))):
        return NotImplemented
    gate, up = saved or (linear(rt, x, **p) for p in projections)
    if gate is NotImplemented or up is NotImplemented or gate.shape != up.shape:
        return NotImplemented
    hidden, s = _elementwise(rt, _gated_and_sigmoid, 2, gate, up)
    below = linear_vjp(rt, g, hidden, **down_proj)
    if below is NotImplemented:
        return NotImplemented
    h, ddown, ddown_bias = below
    block = rt.empty((2, gate.size), gate.dtype)
    dgate_in, dup_in = _elementwise(rt, _gated_vjp, 2, gate, up, s, h, into=block)
    n = gate.shape[-1]
    biases = [p["bias"] for p in projections if p.get("bias") is not None]
    if is_feature_major(gate) and len(biases) != 1:
        both = block.reshape(2 * n, -1).T.reshape(*x.shape[:-1], 2 * n)
        weight = np.concatenate([p["weight"] for p in projections])
        dx, dw, db = linear_vjp(rt, both, x, weight, np.concatenate(biases) if biases else None)
        dgate, dup = dw[:n], dw[n:]
        dgate_bias, dup_bias = (None, None) if db is None else (db[:n], db[n:])
    else:
        dx_up, dup, dup_bias = linear_vjp(rt, dup_in, x, **up_proj)
        dx_gate, dgate, dgate_bias = linear_vjp(rt, dgate_in, x, **gate_proj)
        (dx,) = _elementwise(rt, _added, 1, dx_gate, dx_up)
    return dx, named_grads(dgate, dgate_bias), named_grads(dup, dup_bias), named_grads(ddown, ddown_bias)


def _gated_few(rt: Runtime, x: FloatArray, gate_proj: Mapping[str, Any], up_proj: Mapping[str, Any]) -> Any:
    """Compute silu(gate) ⊙ up for few tokens: each thread has the same rows of both weights, and one barrier."""
    if x.ndim < 1 or x.size > rt.tuning.few_tokens * x.shape[-1]:
        return NotImplemented
    if gate_proj.get("bias") is not None or up_proj.get("bias") is not None:
        return NotImplemented
    plans = plan_products(rt, x, (gate_proj, up_proj))
    if plans is None:
        return NotImplemented
    gate, up = plans
    y = rt.empty(gate.y.shape, x.dtype)

    def part(at: slice) -> None:
        gate.part(at)
        up.part(at)
        _gated([y[:, at]], gate.y[:, at], up.y[:, at])

    if gate.cuts and gate.cuts == up.cuts:
        rt.workers.map(part, gate.cuts)
    else:
        run_plans(rt, plans)
        _gated([y], gate.y, up.y)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _elementwise(
    rt: Runtime, step: Callable[..., None], results: int, *arrays: FloatArray, into: FloatArray | None = None
) -> list[FloatArray]:
    """Call `step(outs, *arrays)` on blocks of arrays of one shape, in any memory order.

    The results lie like the first array, in memory of their own, or in the rows of `into`.
    """
    first, size = arrays[0], rt.tuning.block_elements
    rows = first.reshape(-1, first.shape[-1]) if first.ndim > 1 and first.size else first
    order: Literal["F", "C"] = "F" if is_feature_major(first) else "C"
    flat = [a.reshape(rows.shape).ravel(order=order) for a in arrays]
    outs: Sequence[FloatArray] = (
        [rt.empty((first.size,), first.dtype) for _ in range(results)] if into is None else list(into)
    )

    def part(start: int, stop: int) -> None:
        for i in range(start, stop, size):
            block = slice(i, min(i + size, stop))
            step([out[block] for out in outs], *(a[block] for a in flat))

    if first.size < rt.tuning.parallel_ops:
        part(0, first.size)
    else:
        rt.workers.split(first.size, part, align=16)
    return [out.reshape(rows.shape, order=order).reshape(first.shape) for out in outs]


def _silu(outs: list[FloatArray], x: FloatArray) -> None:
    """Write x / (1 + e^−x)."""
    (out,) = outs
    np.negative(x, out=out)
    with np.errstate(over="ignore"):  # e^−x = ∞ gives the right limit, 0
        np.exp(out, out=out)
    out += 1
    np.divide(x, out, out=out)


def _gated(outs: list[FloatArray], gate: FloatArray, up: FloatArray) -> None:
    """Write silu(gate) ⊙ up."""
    _silu(outs, gate)
    outs[0] *= up


def _gated_and_sigmoid(outs: list[FloatArray], gate: FloatArray, up: FloatArray) -> None:
    """Write silu(gate) ⊙ up, and σ(gate)."""
    hidden, s = outs
    np.negative(gate, out=s)
    with np.errstate(over="ignore"):  # e^−x = ∞ gives the right limit, 0
        np.exp(s, out=s)
    s += 1
    np.divide(1, s, out=s)
    np.multiply(gate, s, out=hidden)
    hidden *= up


def _gated_vjp(outs: list[FloatArray], gate: FloatArray, up: FloatArray, s: FloatArray, h: FloatArray) -> None:
    dgate, dup = outs
    np.multiply(gate, s, out=dup)  # silu(a)
    np.subtract(1, s, out=dgate)
    dgate *= dup
    dgate += s  # s + a s (1 − s)
    dgate *= up
    dgate *= h
    dup *= h


def _added(outs: list[FloatArray], a: FloatArray, b: FloatArray) -> None:
    np.add(a, b, out=outs[0])
