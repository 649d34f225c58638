"""W_down(act(W_gate x) ⊙ W_up x)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refdiff import layers
from refdiff.arrays import Array, namespace
from refdiff.layers.linear import named_grads


def swiglu(
    x: Array,
    gate_proj: Mapping[str, Array],
    up_proj: Mapping[str, Array],
    down_proj: Mapping[str, Array],
    act_fn: Mapping[str, Array] | None = None,
    *,
    act: str = "silu",
    ops: Any = layers,
) -> Array:
    """Apply the gated feed-forward network.

    Equation:
        SwiGLU(x) = (act(x W_Gᵀ) ⊙ x W_1ᵀ) W_2ᵀ  (Shazeer 2020, eq. 6; Ye et al. 2024, section 2.2)

    Used as:
        `swiglu(x, **params["mlp"], act=config.hidden_act)`

    Shapes:
        x (..., D), gate_proj and up_proj {"weight": (F, D)}, down_proj {"weight": (D, F)}, each with or without a
        {"bias": (F,) or (D,)}, act_fn {"weight": (1,)} for prelu -> (..., D)

    Raises:
        ValueError: shapes that do not fit, an unknown activation.
    """
    _check("swiglu", gate_proj, up_proj)
    gate = ops.activation(ops.linear(x, **gate_proj), act, **(act_fn or {}))
    y: Array = ops.linear(gate * ops.linear(x, **up_proj), **down_proj)
    return y


def _check(name: str, gate_proj: Mapping[str, Array], up_proj: Mapping[str, Array]) -> None:
    """Raise ValueError where gate and up have other shapes."""
    gate, up = gate_proj["weight"], up_proj["weight"]
    if tuple(gate.shape) != tuple(up.shape):
        raise ValueError(
            f"{name}: gate_proj, up_proj: got weights of shapes {tuple(gate.shape)} and {tuple(up.shape)}, expected "
            "one shape (F, D)"
        )


def swiglu_vjp(
    g: Array,
    x: Array,
    gate_proj: Mapping[str, Array],
    up_proj: Mapping[str, Array],
    down_proj: Mapping[str, Array],
    act_fn: Mapping[str, Array] | None = None,
    *,
    act: str = "silu",
    saved: tuple[Array, Array] | None = None,
    ops: Any = layers,
) -> tuple[Any, ...]:
    """Pull a gradient back through `swiglu`.

    Equation:
        with a = x W_Gᵀ, b = x W_1ᵀ and h = g W_2: ∂L/∂b = h ⊙ act(a), ∂L/∂a = h ⊙ b ⊙ act′(a),
        ∂L/∂x = ∂L/∂a W_G + ∂L/∂b W_1, and the weights and biases as in `linear_vjp`

    Used as:
        `dx, dgate, dup, ddown = swiglu_vjp(g, x, **params["mlp"], act=config.hidden_act)`

    Shapes:
        g and x (..., D), projections as in `swiglu`; saved = (x W_Gᵀ, x W_1ᵀ), each (..., F), if the forward pass
        kept them -> (..., D) and three dicts like the projections, and one like act_fn where it is given
    """
    _check("swiglu_vjp", gate_proj, up_proj)
    gate, up = saved or (ops.linear(x, **gate_proj), ops.linear(x, **up_proj))
    weights = act_fn or {}
    activated = ops.activation(gate, act, **weights)
    namespace(g, x)  # refuses what is no array
    result = (*x.shape[:-1], down_proj["weight"].shape[0])
    if tuple(g.shape) != result:
        raise ValueError(f"swiglu_vjp: g: got shape {tuple(g.shape)}, expected {result}, that of the result")
    h, ddown, ddown_bias = ops.linear_vjp(g, activated * up, **down_proj)
    dx_up, dup, dup_bias = ops.linear_vjp(h * activated, x, **up_proj)
    dgate_in, *dweights = ops.activation_vjp(h * up, gate, act, **weights)
    dx_gate, dgate, dgate_bias = ops.linear_vjp(dgate_in, x, **gate_proj)
    projections = (dgate, dgate_bias), (dup, dup_bias), (ddown, ddown_bias)
    dact_fn = [dict(zip(weights, dweights, strict=True))] if weights else []
    return dx_gate + dx_up, *(named_grads(*grads) for grads in projections), *dact_fn
