"""Which key each query may see: causal in both alignments, windows, padding and masks together."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff import layers
from refdiff.oracle.spec import Spec

Numpy = np.ndarray[Any, Any]


def attention_mask(spec: Spec, inputs: dict[str, Numpy]) -> Numpy:
    """Return what the queries of dense core inputs may see.

    Equation:
        with t' = t + S − T, or t' = t for `causal="top_left"`: s ≤ t', and t' − window < s; without causal
        |s − t'| < window. Then `key_mask`, `mask`, and a bias of −∞.

    Shapes:
        (B or 1, h or 1, T, S) boolean
    """
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    t = np.arange(T)[:, None] + (0 if spec.causal == "top_left" else S - T)
    s = np.arange(S)[None, :]
    see = np.ones((1, 1, T, S), dtype=np.bool_)
    if spec.causal != "none":
        see &= s <= t
    if spec.window is not None:
        see &= np.abs(s - t) < spec.window
    if "key_mask" in inputs:
        see = see & layers.padding_mask(inputs["key_mask"])
    if "mask" in inputs:
        mask = inputs["mask"]
        see = see & mask[(None,) * (4 - mask.ndim)]
    if "bias" in inputs and (hidden := np.isneginf(inputs["bias"])).any():
        see = see & ~hidden[(None,) * (4 - hidden.ndim)]
    return see


def padded_queries(spec: Spec, inputs: dict[str, Numpy]) -> Numpy | None:
    """Return which queries are padding that may be anything: (B, T), or None where there are none.

    The queries are the last T of the S keys, of which `key_mask` says what is padding.
    """
    if spec.padded_queries == "computed" or "key_mask" not in inputs or "cu_seqlens_q" in inputs:
        return None
    T = (inputs["x"] if "x" in inputs else inputs["q"]).shape[-2]
    real = inputs["key_mask"][:, -T:] if T else inputs["key_mask"][:, :0]
    return np.pad(~real, ((0, 0), (T - real.shape[1], 0)))


def without_padded(padded: Numpy | None, x: Numpy) -> Numpy:
    """Return (B, …, T, e) with 0 in the rows of padded queries, (B, T)."""
    if padded is None:
        return x
    B, T = padded.shape
    return np.where(padded.reshape(B, *(1,) * (x.ndim - 3), T, 1), 0.0, x)


def finite_bias(inputs: dict[str, Numpy]) -> Numpy | None:
    """The bias with 0 where it is −∞: what that hides `attention_mask` says, and −∞ less −∞ would be no number."""
    bias = inputs.get("bias")
    return None if bias is None else np.where(np.isneginf(bias), 0.0, bias)


def is_plain_causal(spec: Spec, inputs: dict[str, Numpy]) -> bool:
    """Whether `causal=True` of the layers is the spec's triangle; they take no fewer keys than queries."""
    return spec.causal == "bottom_right" and bool(inputs["q"].shape[2] <= inputs["k"].shape[2])
