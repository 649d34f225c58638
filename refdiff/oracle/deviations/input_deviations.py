"""Deviations that misread the inputs: other axes in memory, sequences run together, padding or positions unread.

What is not read changes nothing where it is not given: such a kernel is right there, and is still the same kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation
from refdiff.oracle.inputs import QK_WEIGHTS, kind_of
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_mask import attention_mask


def _tokens_first(*names: str) -> Callable[[Spec, Inputs], Inputs | None]:
    """Read the memory of (B, H, T, d) as (B, T, H, d); of pages each by itself."""

    def misread(spec: Spec, inputs: Inputs) -> Inputs | None:
        found = [name for name in names if name in inputs]
        return {**inputs, **{name: _reread(inputs[name]) for name in found}} if found else None

    return misread


def _reread(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    B, H, T, d = x.shape
    return np.moveaxis(x.reshape(B, T, H, d), 2, 1)


def _unread(*names: str) -> Callable[[Spec, Inputs], Inputs | None]:
    """Leave these inputs out."""
    return lambda spec, inputs: {name: x for name, x in inputs.items() if name not in names}


def _sequences_seen_together(spec: Spec, inputs: Inputs) -> Inputs | None:
    if "cu_seqlens_q" not in inputs or "k_pages" in inputs:
        return None
    return {name: x for name, x in inputs.items() if not name.startswith("cu_seqlens")}


def _positions_not_restarted(spec: Spec, inputs: Inputs) -> Inputs | None:
    if "cu_seqlens_k" not in inputs or "q_positions" in inputs or spec.rope == "none":
        return None
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    return {**inputs, "q_positions": np.arange(T)[None], "k_positions": np.arange(S)[None]}


def _keys_start_with_the_queries(spec: Spec, inputs: Inputs) -> Inputs | None:
    """Only where both numbers of tokens are the same is that no contradiction."""
    if "cu_seqlens_k" not in inputs or inputs["q"].shape[2] != inputs["k"].shape[2]:
        return None
    return {**inputs, "cu_seqlens_k": inputs["cu_seqlens_q"]}


def _pages_as_they_lie(spec: Spec, inputs: Inputs) -> Inputs | None:
    if "block_table" not in inputs:
        return None
    table, pages = inputs["block_table"], inputs["k_pages"].shape[0]
    return {**inputs, "block_table": np.arange(table.size).reshape(table.shape) % max(1, pages)}


def _lengths_of_pages(rounded: Callable[[Any, int], Any]) -> Callable[[Spec, Inputs], Inputs | None]:
    """The lengths of sequences rounded to whole pages of p keys."""

    def misread(spec: Spec, inputs: Inputs) -> Inputs | None:
        if "block_table" not in inputs:
            return None
        p = inputs["k_pages"].shape[2]
        return {**inputs, "lengths": rounded(inputs["lengths"], p)}

    return misread


def _triangle_moved(by: int) -> Callable[[Spec, Inputs], tuple[Spec, Inputs] | None]:
    """See keys s ≤ t + S − T + by, also where queries are more than keys, whose triangle no layer has."""

    def moved(spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs] | None:
        if spec.causal != "bottom_right" or kind_of(inputs) != "dense":
            return None
        T, S = inputs["q"].shape[2], inputs["k"].shape[2]
        t, s = np.arange(T)[:, None], np.arange(S)[None]
        see = attention_mask(spec.replace(causal="none"), inputs) & (s <= t + S - T + by)
        return spec.replace(causal="none", window=None), {**inputs, "mask": see}

    return moved


def _weights_exchanged(spec: Spec, inputs: Inputs) -> Inputs | None:
    q, k = QK_WEIGHTS
    return {**inputs, q: inputs[k], k: inputs[q]} if q in inputs else None


def _sinks(misread: Callable[[Spec, Any], Any]) -> Callable[[Spec, Inputs], Inputs | None]:
    """Take other numbers for the sinks."""
    return lambda spec, inputs: {**inputs, "sinks": misread(spec, inputs["sinks"])} if "sinks" in inputs else None


def _sinks_of_key_heads(spec: Spec, sinks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.repeat(sinks[: spec.key_heads], spec.query_heads // spec.key_heads)


INPUT_DEVIATIONS: tuple[Deviation, ...] = (
    Deviation("queries_read_by_token", "q, (B, H, T, d) in memory, read as (B, T, H, d).", "layout",
              arrays=_tokens_first("q")),
    Deviation("keys_read_by_token", "k, (B, K, S, d) in memory, read as (B, S, K, d).", "layout",
              arrays=_tokens_first("k", "k_pages")),
    Deviation("values_read_by_token", "v, (B, V, S, w) in memory, read as (B, S, V, w).", "layout",
              arrays=_tokens_first("v", "v_pages")),
    Deviation("gate_read_by_token", "The gate's logits, (B, h, T, e) in memory, read as (B, T, h, e).", "layout",
              arrays=_tokens_first("gate_logits")),
    Deviation("weights_of_the_qk_norm_exchanged", "The weight of the norm of k for q, and the reverse.", "qk norm",
              arrays=_weights_exchanged),
    Deviation("all_read_by_token", "q, k and v, with heads before tokens in memory, read with tokens before heads.",
              "layout", arrays=_tokens_first("q", "k", "k_pages", "v", "v_pages")),
    Deviation("padding_seen", "Padding seen as if it were text.", "mask", arrays=_unread("key_mask")),
    Deviation("mask_unread", "The mask that is given not used.", "mask", arrays=_unread("mask")),
    Deviation("bias_unread", "The bias that is given not used.", "bias", arrays=_unread("bias")),
    Deviation("positions_unread", "The positions that are given not used.", "rope offset",
              arrays=_unread("q_positions", "k_positions")),
    Deviation("sinks_scaled", "The sink multiplied by 1/√d, or by the spec's scale, as scores are.", "sinks",
              arrays=_sinks(lambda spec, x: x * (spec.scale or spec.head_dim**-0.5))),
    Deviation("sinks_to_base_2", "2^sink for e^sink: the sink not multiplied by log₂ e, where scores are.", "sinks",
              arrays=_sinks(lambda spec, x: x * math.log(2))),
    Deviation("sinks_of_zero", "1 in the denominator for e^sink: its numbers not read.", "sinks",
              arrays=_sinks(lambda spec, x: 0 * x)),
    Deviation("sinks_of_key_heads", "The sink of key head h // (H/K) for that of query head h.", "sinks",
              arrays=_sinks(_sinks_of_key_heads)),
    Deviation("past_unread", "What came before not seen.", "cache", arrays=_unread("x_past")),
    Deviation("sequences_seen_together", "Packed sequences see each other.", "packed", arrays=_sequences_seen_together),
    Deviation("positions_not_restarted", "Positions counted through all packed sequences.", "packed",
              arrays=_positions_not_restarted),
    Deviation("keys_start_with_the_queries", "Keys of each sequence where its queries are.", "packed",
              arrays=_keys_start_with_the_queries),
    Deviation("pages_as_they_lie", "Pages read in the order of memory, not of the table.", "paged",
              arrays=_pages_as_they_lie),
    Deviation("last_page_lost", "A last page that is not full not read.", "paged",
              arrays=_lengths_of_pages(lambda n, p: n // p * p)),
    Deviation("last_page_whole", "The last page of each sequence read to its end.", "paged",
              arrays=_lengths_of_pages(lambda n, p: -(-n // p) * p)),
)  # fmt: skip

TRIANGLE_DEVIATIONS: tuple[Deviation, ...] = (
    Deviation("triangle_one_key_later", "s ≤ t + S − T + 1.", "mask off by one", problem=_triangle_moved(1)),
    Deviation("triangle_one_key_earlier", "s < t + S − T.", "mask off by one", problem=_triangle_moved(-1)),
)
"""The same as two mistakes of layers, which know no triangle of more queries than keys."""
