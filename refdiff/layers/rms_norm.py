"""y = x / √(mean x² + ε) · w."""

from __future__ import annotations

from refdiff.arrays import Array, namespace


def rms_norm(x: Array, weight: Array | None, eps: float) -> Array:
    """Scale each row to unit root mean square, then by a learned weight.

    Equation:
        y = x / √(mean(x²) + ε) ⊙ w  (Zhang and Sennrich 2019, eq. 4, with ε inside the root).
        The LN(·) of Ye et al. 2024 is this function.

    Used as:
        `rms_norm(x, **params["input_layernorm"], eps=config.rms_norm_eps)`; the norm after differential attention
        in DiffLlama has no weight: `rms_norm(x, None, eps)`

    Shapes:
        x (..., D), weight (D,) or None -> (..., D)

    Raises:
        ValueError: `weight` is not (D,), or `eps` is negative.
    """
    _check("rms_norm", x, weight, eps)
    xp = namespace(x, weight)
    y = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)
    return y if weight is None else y * weight


def _check(name: str, x: Array, weight: Array | None, eps: float) -> None:
    """Raise ValueError unless `weight` is (D,) or None, and `eps` is 0 or more."""
    if weight is not None and tuple(weight.shape) != (x.shape[-1],):
        raise ValueError(
            f"{name}: weight: got shape {tuple(weight.shape)}, expected ({x.shape[-1]},) for x {tuple(x.shape)}"
        )
    if not eps >= 0:
        raise ValueError(f"{name}: eps: got {eps}, expected 0 or more")


def rms_norm_vjp(g: Array, x: Array, weight: Array | None, eps: float) -> tuple[Array, Array | None]:
    """Pull a gradient back through `rms_norm`.

    Equation:
        with r = 1 / √(mean(x²) + ε), x̂ = r x and h = g ⊙ w:
        ∂L/∂x = r (h − x̂ mean(h ⊙ x̂)),  ∂L/∂w = Σ_rows g ⊙ x̂
        (from ∂r/∂x_i = −r³ x_i / D: the part of h along x is taken away, up to ε)

    Shapes:
        g and x (..., D), weight (D,) or None -> (..., D), (D,) or None
    """
    _check("rms_norm_vjp", x, weight, eps)
    if g.shape != x.shape:
        raise ValueError(f"rms_norm_vjp: g: got shape {tuple(g.shape)}, expected {tuple(x.shape)}, like x")
    xp = namespace(g, x, weight)
    r = 1 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)
    normed = x * r
    h = g if weight is None else g * weight
    dx = r * (h - normed * xp.mean(h * normed, axis=-1, keepdims=True))
    if weight is None:
        return dx, None
    return dx, xp.sum(xp.reshape(g * normed, (-1, x.shape[-1])), axis=0)
