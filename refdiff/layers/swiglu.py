"""W_down(act(W_gate x) ⊙ W_up x)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from refdiff.arrays import Array
from refdiff.layers.activation import activation
from refdiff.layers.linear import linear


def swiglu(
    x: Array,
    gate_proj: Mapping[str, Array],
    up_proj: Mapping[str, Array],
    down_proj: Mapping[str, Array],
    *,
    act: str = "silu",
    linear: Callable[..., Array] = linear,
    activation: Callable[..., Array] = activation,
) -> Array:
    """Apply the gated feed-forward network.

    Equation:
        SwiGLU(x) = (act(x W_Gᵀ) ⊙ x W_1ᵀ) W_2ᵀ  (Shazeer 2020, eq. 6; Ye et al. 2024, section 2.2)

    Used as:
        `swiglu(x, **params["mlp"], act=config.hidden_act)`

    Shapes:
        x (..., D), gate_proj and up_proj {"weight": (F, D)}, down_proj {"weight": (D, F)} -> (..., D)

    Precision:
        in the dtype of `x`.

    Raises:
        ValueError: shapes that do not fit, an unknown activation.
    """
    gate = activation(linear(x, **gate_proj), act)
    return linear(gate * linear(x, **up_proj), **down_proj)
