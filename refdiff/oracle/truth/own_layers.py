"""What published attentions compute beside the layers of this package: LayerNorm's centring, a norm of q and k, a gate.

`own(ops, name)` is the function of that name that a namespace has beside its layers, as that of rounded layers has; or
the one here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff import layers
from refdiff.backends import Ops

Numpy = np.ndarray[Any, Any]


def center(x: Numpy) -> Numpy:
    """Take away the mean of each row: LayerNorm is that and then RMSNorm. It is its own derivative's transpose."""
    y: Numpy = x - np.mean(x, axis=-1, keepdims=True)
    return y


def stored(x: Numpy, site: str) -> Numpy:
    """Keep a result as the recipe does at `site`, where every operation's result is stored; exactly here."""
    return x


def rounded(x: Numpy, site: str) -> Numpy:
    """Round a result to the type that the recipe computes it in at `site`; exactly here."""
    return x


def raw_scores(q: Numpy, k: Numpy) -> Numpy:
    """Q Kᵀ / √d, for what is done to scores before the softmax: (B, h, T, S)."""
    z: Numpy = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    return z


def qk_norm(x: Numpy, weight: Numpy | None, eps: float, kind: str) -> Numpy:
    """Norm q or k by head: (B, H, T, d), "rms" or "layer"."""
    y: Numpy = layers.rms_norm(center(x) if kind == "layer" else x, weight, eps)
    return y


def qk_norm_vjp(g: Numpy, x: Numpy, weight: Numpy | None, eps: float, kind: str) -> tuple[Numpy, Numpy | None]:
    """Pull a gradient back through `qk_norm`: of x, and of the weight where there is one."""
    dx, dweight = layers.rms_norm_vjp(g, center(x) if kind == "layer" else x, weight, eps)
    return center(dx) if kind == "layer" else dx, dweight


def sum_over_tokens(terms: Numpy, name: str, per_head: bool) -> Numpy:
    """Add up the terms of the gradient `name`, a norm's weight or bias: (B, h, T, e) to (e,), or (h, e) per head."""
    total: Numpy = np.sum(terms, axis=(0, 2) if per_head else (0, 1, 2))
    return total


OWN: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (center, stored, rounded, raw_scores, qk_norm, qk_norm_vjp, sum_over_tokens)
}


def own(ops: Ops, name: str) -> Callable[..., Any]:
    """Return the function of that name in `ops`, or the one of this module."""
    function: Callable[..., Any] = getattr(ops, name, OWN[name])
    return function
