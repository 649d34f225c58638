"""y = x Wᵀ + b."""

from __future__ import annotations

from refdiff.arrays import Array, namespace


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Apply a linear map to the last axis.

    Equation:
        y = x Wᵀ + b

    Used as:
        `linear(x, **params["self_attn"]["q_proj"])`

    Shapes:
        x (..., I), weight (O, I), bias (O,) or None -> (..., O)

    Raises:
        ValueError: shapes that do not fit.
    """
    _check("linear", x, weight, bias)
    y = namespace(x, weight, bias).matmul(x, weight.T)
    return y if bias is None else y + bias


def _check(name: str, x: Array, weight: Array, bias: Array | None) -> None:
    """Raise ValueError where the shapes do not fit."""
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{name}: x, weight: got shapes {tuple(x.shape)} and {tuple(weight.shape)}, expected (..., I) and (O, I)"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"{name}: bias: got shape {tuple(bias.shape)}, expected ({weight.shape[0]},) for weight "
            f"{tuple(weight.shape)}"
        )


def linear_vjp(g: Array, x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Array, Array | None]:
    """Pull a gradient back through `linear`.

    Equation:
        ∂L/∂x = g W,  ∂L/∂W = Σ_rows gᵀ x,  ∂L/∂b = Σ_rows g

    Shapes:
        g (..., O), x (..., I), weight (O, I), bias (O,) or None -> (..., I), (O, I), (O,) or None
    """
    xp = namespace(g, x, weight, bias)
    _check("linear_vjp", x, weight, bias)
    if tuple(g.shape) != (*x.shape[:-1], weight.shape[0]):
        raise ValueError(
            f"linear_vjp: g: got shape {tuple(g.shape)}, expected {(*x.shape[:-1], weight.shape[0])}, like the result"
        )
    rows = xp.reshape(g, (-1, g.shape[-1]))
    dw = rows.T @ xp.reshape(x, (-1, x.shape[-1]))
    return xp.reshape(rows @ weight, x.shape), dw, None if bias is None else xp.sum(rows, axis=0)


def named_grads(weight: Array, bias: Array | None) -> dict[str, Array]:
    """Return the gradients of a projection under the names of its arrays."""
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
