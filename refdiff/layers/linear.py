"""y = x Wᵀ + b."""

from __future__ import annotations

from refdiff.arrays import Array


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Apply a linear map to the last axis.

    Equation:
        y = x Wᵀ + b

    Used as:
        `linear(x, **params["self_attn"]["q_proj"])`

    Shapes:
        x (..., I), weight (O, I), bias (O,) or None -> (..., O)

    Precision:
        one matrix product in the common dtype of `x` and `weight`.

    Raises:
        ValueError: the last axis of `x` is not I, or `bias` is not (O,).
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: weight has shape {tuple(weight.shape)}, x has shape {tuple(x.shape)}: "
            "the last axis of both must be equal"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"linear: bias has shape {tuple(bias.shape)}, but weight {tuple(weight.shape)} needs ({weight.shape[0]},)"
        )
    y = x @ weight.T
    return y if bias is None else y + bias
