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

    Precision:
        in the dtype of `x`, sums included.

    Raises:
        ValueError: `weight` is not (D,), or `eps` is negative.
    """
    if weight is not None and tuple(weight.shape) != (x.shape[-1],):
        raise ValueError(
            f"rms_norm: weight has shape {tuple(weight.shape)}, but the last axis of x {tuple(x.shape)} "
            f"is {x.shape[-1]}"
        )
    if not eps >= 0:
        raise ValueError(f"rms_norm: eps is {eps}, but must be 0 or more")
    xp = namespace(x, weight)
    y = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)
    return y if weight is None else y * weight
