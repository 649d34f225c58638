"""λ_init by depth, and λ from its four learned vectors."""

from __future__ import annotations

import math

from refdiff.arrays import Array, namespace


def lambda_init(layer: int) -> float:
    """Return the value that λ starts from in a layer, and that the output is scaled by.

    Equation:
        λ_init = 0.8 − 0.6 exp(−0.3 l)  (Ye et al. 2024, section 2.1, where layers count from 1: l − 1 there is l here)

    Used as:
        `lambda_init(0)` is 0.2 in the first layer; it approaches 0.8 with depth

    Shapes:
        layer, from 0 -> a float

    Precision:
        float64.

    Raises:
        ValueError: `layer` is negative.
    """
    if layer < 0:
        raise ValueError(f"lambda_init: layer is {layer}, but layers count from 0")
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


def diff_lambda(lambda_q1: Array, lambda_k1: Array, lambda_q2: Array, lambda_k2: Array, lambda_init: float) -> Array:
    """Compute the weight λ of the second attention map from four learned vectors.

    Equation:
        λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init  (Ye et al. 2024, eq. 2)

    Used as:
        `diff_lambda(p["lambda_q1"], p["lambda_k1"], p["lambda_q2"], p["lambda_k2"], lambda_init(layer))`

    Shapes:
        four times (d,), a float -> a scalar array ()

    Precision:
        in the dtype of the vectors.

    Raises:
        ValueError: the vectors are not four of one length.
    """
    shapes = [tuple(v.shape) for v in (lambda_q1, lambda_k1, lambda_q2, lambda_k2)]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"diff_lambda: the four vectors have shapes {shapes}, but must all be (d,)")
    xp = namespace(lambda_q1, lambda_k1, lambda_q2, lambda_k2)
    return xp.exp(xp.sum(lambda_q1 * lambda_k1)) - xp.exp(xp.sum(lambda_q2 * lambda_k2)) + lambda_init
