"""Deviations that misread the inputs: their memory layout, packed sequences, pages, masks and positions, and the order
of heads in groups that share a noise head, as in Motif-3.

A deviation that ignores an input also applies where this input is not given: the kernel is correct there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.inputs import QK_WEIGHTS, kind_of
from refdiff.oracle.inputs.sequences import Inputs, Numpy, sequences
from refdiff.oracle.mistakes.catalogue import Call, Mistake, in_attention, misread
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import attention_mask
from refdiff.oracle.truth.forward import project


def _exchange_axes(names: tuple[str, ...], spec: Spec, inputs: Inputs) -> Inputs | None:
    """Read the memory of (B, m, n, …) as (B, n, m, …), that of pages page by page."""
    found = [name for name in names if name in inputs]
    return {**inputs, **{name: _reinterpret(inputs[name]) for name in found}} if found else None


def _reinterpret(x: Numpy) -> Numpy:
    B, m, n, *rest = x.shape
    return np.swapaxes(x.reshape(B, n, m, *rest), 1, 2)


def ignore_inputs(names: tuple[str, ...], spec: Spec, inputs: Inputs) -> Inputs:
    """Drop some inputs, where they are given."""
    return {name: x for name, x in inputs.items() if name not in names}


def replace_input(name: str, wrong: Callable[[Spec, Inputs], Any], spec: Spec, inputs: Inputs) -> Inputs | None:
    """Replace an input; None where it is not given."""
    return {**inputs, name: wrong(spec, inputs)} if name in inputs else None


def _sequences_not_separated(spec: Spec, inputs: Inputs) -> Inputs | None:
    if "cu_seqlens_q" not in inputs or "k_pages" in inputs:
        return None
    return {name: x for name, x in inputs.items() if not name.startswith("cu_seqlens")}


def _positions_not_restarted(spec: Spec, inputs: Inputs) -> Inputs | None:
    if "cu_seqlens_k" not in inputs or "q_positions" in inputs or spec.rope == "none":
        return None
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    return {**inputs, "q_positions": np.arange(T)[None], "k_positions": np.arange(S)[None]}


def _keys_at_query_offsets(spec: Spec, inputs: Inputs) -> Inputs | None:
    """Use the offsets of the queries for the keys, if there are as many keys as queries in all."""
    if "cu_seqlens_k" not in inputs or inputs["q"].shape[2] != inputs["k"].shape[2]:
        return None
    return {**inputs, "cu_seqlens_k": inputs["cu_seqlens_q"]}


def _pages_in_memory_order(spec: Spec, inputs: Inputs) -> Any:
    table, pages = inputs["block_table"], inputs["k_pages"].shape[0]
    return np.arange(table.size).reshape(table.shape) % max(1, pages)


def change_query_positions(change: Callable[[Numpy], Numpy], spec: Spec, inputs: Inputs) -> Inputs | None:
    """Change the positions of the queries, not those of the keys."""
    return None if spec.rope == "none" else {**inputs, "q_positions": change(query_positions(spec, inputs))}


def query_positions(spec: Spec, inputs: Inputs) -> Numpy:
    """Return the positions of the queries, (B, T) or (1, T): the given ones, or those of each sequence's last keys."""
    if "q_positions" in inputs:
        return inputs["q_positions"]
    core = project(spec, inputs, ops_for())
    B, _, T, _ = core["q"].shape
    positions = np.zeros((B, T), dtype=np.int64)
    for part in sequences(core):
        keys = part.inputs["k"].shape[2]
        positions[part.batch, part.queries] = np.arange(keys - part.inputs["q"].shape[2], keys)
    return positions


def _positions_of_the_longest(spec: Spec, inputs: Inputs) -> Inputs | None:
    """Give the queries of every sequence the positions of the longest sequence, as code with one position per batch."""
    if "lengths" not in inputs or "q_positions" in inputs or spec.rope == "none":
        return None
    longest = int(np.max(inputs["lengths"], initial=0))
    counts = np.diff(inputs["cu_seqlens_q"]) if "cu_seqlens_q" in inputs else [inputs["q"].shape[2]]
    return {**inputs, "q_positions": np.concatenate([np.arange(longest - n, longest) for n in counts])[None]}


def round_lengths(rounded: Callable[[Any, int], Any], spec: Spec, inputs: Inputs) -> Inputs | None:
    """Round the lengths of the sequences to whole pages of p keys; queries keep their positions."""
    if "block_table" not in inputs:
        return None
    p = inputs["k_pages"].shape[2]
    positions = {} if spec.rope == "none" else {"q_positions": query_positions(spec, inputs)}
    return {**inputs, **positions, "lengths": rounded(inputs["lengths"], p)}


def _repeat_page_before_last(spec: Spec, inputs: Inputs) -> Numpy:
    """Read a last page that is not full from where the page before it lies."""
    table, lengths, p = inputs["block_table"].copy(), inputs["lengths"], inputs["k_pages"].shape[2]
    n = np.flatnonzero((lengths % p != 0) & (lengths > p))
    table[n, lengths[n] // p] = table[n, lengths[n] // p - 1]
    return table


def _shift_triangle(by: int, spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs] | None:
    """Attend to keys s ≤ t + S − T + by, also if there are more queries than keys, which the layers do not support."""
    if spec.causal != "bottom_right" or kind_of(inputs) != "dense":
        return None
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    t, s = np.arange(T)[:, None], np.arange(S)[None]
    see = attention_mask(spec.replace(causal="none"), inputs) & (s <= t + S - T + by)
    return spec.replace(causal="none", window=None), {**inputs, "mask": see}


def _exchange(pairs: Sequence[tuple[str, str]], spec: Spec, inputs: Inputs) -> Inputs | None:
    """Exchange the two inputs of each pair that is given, if their shapes are equal."""
    given = [(a, b) for a, b in pairs if a in inputs]
    if not given or any(inputs[a].shape != inputs[b].shape for a, b in given):
        return None
    return {**inputs, **{a: inputs[b] for a, b in given}, **{b: inputs[a] for a, b in given}}


def _transpose(name: str, spec: Spec, inputs: Inputs) -> Inputs | None:
    """Transpose a weight if it is square."""
    weight = inputs.get(name)
    return None if weight is None or weight.shape[0] != weight.shape[1] else {**inputs, name: weight.T}


INPUT_DEVIATIONS: tuple[Mistake, ...] = (
    misread("queries_read_as_tokens_first", "q, (B, H, T, d) in memory, read as (B, T, H, d).", "layout",
              arrays=partial(_exchange_axes, ("q",))),
    misread("keys_read_as_tokens_first", "k, (B, K, S, d) in memory, read as (B, S, K, d).", "layout",
              arrays=partial(_exchange_axes, ("k", "k_pages"))),
    misread("values_read_as_tokens_first", "v, (B, V, S, w) in memory, read as (B, S, V, w).", "layout",
              arrays=partial(_exchange_axes, ("v", "v_pages"))),
    misread("gate_read_as_tokens_first", "The gate's logits, (B, h, T, e) in memory, read as (B, T, h, e).", "layout",
              arrays=partial(_exchange_axes, ("gate_logits",))),
    misread("lambda_read_as_heads_first", "λ's logits, (B, T, h) in memory, read as (B, h, T).", "layout",
              arrays=partial(_exchange_axes, ("lambda_logits",))),
    misread("keys_and_values_swapped", "k and v exchanged.", "layout",
              arrays=partial(_exchange, [(f"k{x}", f"v{x}") for x in ("", "_pages", "_proj.weight", "_proj.bias")])),
    misread("q_proj_transposed", "x W in place of x Wᵀ, W = q_proj.", "layout",
              arrays=partial(_transpose, "q_proj.weight")),
    misread("o_proj_transposed", "x W in place of x Wᵀ, W = o_proj.", "layout",
              arrays=partial(_transpose, "o_proj.weight")),
    misread("qk_norm_weights_swapped", "The weights of the norms of q and k exchanged.", "qk norm",
              arrays=partial(_exchange, [QK_WEIGHTS])),
    misread("qkv_read_as_tokens_first",
              "q, k and v, with heads before tokens in memory, read with tokens before heads.", "layout",
              arrays=partial(_exchange_axes, ("q", "k", "k_pages", "v", "v_pages"))),
    misread("padding_visible", "Padding tokens visible as keys.", "mask",
              arrays=partial(ignore_inputs, ("key_mask",))),
    misread("mask_ignored", "The given mask ignored.", "mask", arrays=partial(ignore_inputs, ("mask",))),
    misread("query_positions_one_low", "RoPE rotates queries by their position − 1, keys by their own.",
              "rope offset", arrays=partial(change_query_positions, lambda p: p - 1)),
    misread("query_positions_one_high", "RoPE rotates queries by their position + 1, keys by their own.",
              "rope offset", arrays=partial(change_query_positions, lambda p: p + 1)),
    misread("sinks_scaled", "The sink multiplied by 1/√d, or by the spec's scale, as scores are.", "sinks",
              arrays=partial(replace_input, "sinks", lambda spec, x: x["sinks"] * (spec.scale or spec.head_dim**-0.5))),
    misread("sinks_in_base_2", "2^sink in place of e^sink: scores multiplied by log₂ e, and the sink not.", "sinks",
              arrays=partial(replace_input, "sinks", lambda _, x: x["sinks"] * math.log(2))),
    misread("sinks_set_to_zero", "1 in place of e^sink in the denominator: the sinks not read.", "sinks",
              arrays=partial(replace_input, "sinks", lambda _, x: 0 * x["sinks"])),
    misread("sinks_by_key_head", "The sink of key head h // (H/K) in place of that of query head h.", "sinks",
              arrays=partial(replace_input, "sinks", lambda spec, x: np.repeat(
                  x["sinks"][: spec.key_heads], spec.query_heads // spec.key_heads))),
    misread("past_ignored", "Past tokens (x_past) ignored.", "cache", arrays=partial(ignore_inputs, ("x_past",))),
    misread("sequences_not_separated", "Packed sequences see each other.", "packed", arrays=_sequences_not_separated),
    misread("positions_not_restarted", "Positions counted on across packed sequences.", "packed",
              arrays=_positions_not_restarted),
    misread("keys_at_query_offsets", "Keys of each sequence read at the offsets of its queries, cu_seqlens_q.",
              "packed", arrays=_keys_at_query_offsets),
    misread("pages_in_memory_order", "Pages read in memory order, not in that of the block table.", "paged",
              arrays=partial(replace_input, "block_table", _pages_in_memory_order)),
    misread("positions_of_longest_sequence", "Queries rotated by the positions of the longest sequence.", "paged",
              arrays=_positions_of_the_longest),
    misread("last_page_lost", "The last page of each sequence not read, unless it is full.", "paged",
              arrays=partial(round_lengths, lambda n, p: n // p * p)),
    misread("last_page_read_from_previous", "A last page that is not full read from where the page before it lies.",
              "paged", arrays=partial(replace_input, "block_table", _repeat_page_before_last)),
    misread("last_page_not_masked", "The last page of each sequence read to its end, beyond the length.", "paged",
              arrays=partial(round_lengths, lambda n, p: -(-n // p) * p)),
)  # fmt: skip

TRIANGLE_DEVIATIONS: tuple[Mistake, ...] = (
    misread("causal_mask_one_key_late", "One key too many: s ≤ t + S − T + 1.", "mask off by one",
              problem=partial(_shift_triangle, 1)),
    misread("causal_mask_one_key_early", "One key too few: s < t + S − T.", "mask off by one",
              problem=partial(_shift_triangle, -1)),
)  # fmt: skip
"""The same as two mistakes of layers, but also for more queries than keys."""


def _attend_every_head(call: Call) -> tuple[Numpy, int] | None:
    """Return softmax(q Kᵀ) V of every query head, (B, H, T, e), in the order of q, and the signals per noise.

    Signals share a noise head if their second queries are equal. None if no heads share one or the maps' keys differ.
    """
    h = call.q1.shape[1]
    shared = np.all(call.q2 == call.q2[:, :1], axis=(0, 2, 3))
    r = h if shared.all() else int(np.argmin(shared))
    one_mask = all(x is None or x.ndim < 3 or x.shape[-3] == 1 for x in (call.mask, call.bias))
    if r == 1 or h % r or not one_mask or call.k1.shape[1] != h or not np.array_equal(call.k1, call.k2):
        return None

    def grouped(signals: Numpy, noises: Numpy) -> Numpy:
        B, _, *rest = signals.shape
        both = [signals.reshape(B, h // r, r, *rest), noises[:, ::r, None]]
        return np.concatenate(both, axis=2).reshape(B, h // r * (r + 1), *rest)

    q, k, v = grouped(call.q1, call.q2), grouped(call.k1, call.k2), grouped(call.v, call.v)
    return call(q1=q, k1=k, q2=q, k2=k, v=v, lambda_=np.zeros(())), r


def _signals_first(call: Call) -> Any:
    found = _attend_every_head(call)
    if found is None:
        return call()
    (heads, r), h = found, call.q1.shape[1]
    return heads[:, :h] - call.lambda_ * np.repeat(heads[:, h:], r, axis=1)


def _exchange_heads_and_tokens(call: Call) -> Any:
    found = _attend_every_head(call)
    if found is None or found[0].shape[1] != call.q1.shape[2]:
        return call()
    heads, r = np.swapaxes(found[0], 1, 2), found[1]
    B, H, T, e = heads.shape
    groups = heads.reshape(B, H // (r + 1), r + 1, T, e)
    signals, noises = groups[:, :, :r].reshape(B, -1, T, e), groups[:, :, r]
    return signals - call.lambda_ * np.repeat(noises, r, axis=1)


def _noise_first(spec: Spec, inputs: Inputs) -> Inputs | None:
    if spec.ratio == 1 or spec.pairing != "interleaved" or "q" not in inputs:
        return None
    B, H, *rest = inputs["q"].shape
    groups = inputs["q"].reshape(B, H // (spec.ratio + 1), spec.ratio + 1, *rest)
    return {**inputs, "q": np.roll(groups, -1, axis=2).reshape(B, H, *rest)}


GROUP_DEVIATIONS: tuple[Mistake, ...] = (
    in_attention("all_signals_first", "The first h heads of the attention taken as signals and the rest as "
                           "noises, where each group has its noise behind its signals.", "ratio", _signals_first),
    in_attention("heads_and_tokens_swapped", "(B, T, H, e) of the attention read as (B, H, T, e) where T "
                           "is H, as by code that tells the axes apart by their sizes.", "output layout",
                           _exchange_heads_and_tokens),
    misread("noise_head_first", "The first head of each group taken as its noise, where it is the last.",
              "ratio", arrays=_noise_first),
)  # fmt: skip
