"""Deviations that misread the inputs: their memory layout, packed sequences, pages, masks and positions.

A deviation that ignores an input also applies where this input is not given: the kernel is correct there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.inputs import QK_WEIGHTS, kind_of
from refdiff.oracle.inputs.sequences import Inputs, Numpy, sequences
from refdiff.oracle.mistakes.catalogue import Mistake, misread
from refdiff.oracle.mistakes.in_spec import scale_of
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.forward import project

Arrays = Callable[[Spec, Inputs], Inputs | None]
TABLE_AXIS = "tables"
"""The axis of deviations that misread the tables of packed and paged sequences."""


def ignore(*names: str) -> Arrays:
    """Drop some inputs, where they are given."""
    return lambda _, inputs: {name: x for name, x in inputs.items() if name not in names}


def change(name: str, wrong: Callable[[Spec, Inputs], Any], condition: Callable[[Inputs], Any] = bool) -> Arrays:
    """Replace an input; None where it is not given, or a condition on the inputs is not met."""
    return lambda spec, x: {**x, name: wrong(spec, x)} if name in x and condition(x) else None


def _as_tokens_first(*names: str) -> Arrays:
    """Read the memory of (B, m, n, …) as (B, n, m, …), that of pages page by page."""

    def read(x: Numpy) -> Numpy:
        B, m, n, *rest = x.shape
        return np.swapaxes(x.reshape(B, n, m, *rest), 1, 2)

    def arrays(_: Spec, inputs: Inputs) -> Inputs | None:
        found = [name for name in names if name in inputs]
        return {**inputs, **{name: read(inputs[name]) for name in found}} if found else None

    return arrays


def _exchange(*pairs: tuple[str, str]) -> Arrays:
    """Exchange the two inputs of each pair that is given, if their shapes are equal."""

    def arrays(_: Spec, inputs: Inputs) -> Inputs | None:
        given = [(a, b) for a, b in pairs if a in inputs]
        if not given or any(inputs[a].shape != inputs[b].shape for a, b in given):
            return None
        return {**inputs, **{a: inputs[b] for a, b in given}, **{b: inputs[a] for a, b in given}}

    return arrays


def _transpose(name: str) -> Arrays:
    """Transpose a weight if it is square."""
    return change(name, lambda _, x: x[name].T, lambda x: x[name].shape[0] == x[name].shape[1])


def _query_positions(wrong: Callable[[Numpy], Numpy]) -> Arrays:
    """Change the positions of the queries, not those of the keys."""
    return lambda spec, x: None if spec.rope == "none" else {**x, "q_positions": wrong(query_positions(spec, x))}


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


def _key_positions(factor: int) -> Arrays:
    """Multiply the positions by which keys are rotated; not in a whole layer without them."""

    def arrays(spec: Spec, inputs: Inputs) -> Inputs | None:
        kind = kind_of(inputs)
        if "k_positions" in inputs:
            own = inputs["k_positions"]
        elif kind == "packed":
            counts = np.diff(inputs.get("cu_seqlens_k", inputs["cu_seqlens_q"]))
            own = np.concatenate([np.arange(n) for n in counts])[None]
        elif kind == "layer":
            return None
        else:
            own = np.arange(np.max(inputs["lengths"], initial=0) if kind == "paged" else inputs["k"].shape[2])[None]
        return None if spec.rope == "none" else {**inputs, "k_positions": factor * own}

    return arrays


def _positions_not_restarted(spec: Spec, inputs: Inputs) -> Inputs | None:
    if "cu_seqlens_k" not in inputs or "q_positions" in inputs or spec.rope == "none":
        return None
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    return {**inputs, "q_positions": np.arange(T)[None], "k_positions": np.arange(S)[None]}


def _positions_of_the_longest(spec: Spec, inputs: Inputs) -> Inputs | None:
    """Give the queries of every sequence the positions of the longest sequence, as code with one position per batch."""
    if "lengths" not in inputs or "q_positions" in inputs or spec.rope == "none":
        return None
    longest = int(np.max(inputs["lengths"], initial=0))
    counts = np.diff(inputs["cu_seqlens_q"]) if "cu_seqlens_q" in inputs else [inputs["q"].shape[2]]
    return {**inputs, "q_positions": np.concatenate([np.arange(longest - n, longest) for n in counts])[None]}


def _lengths(wrong: Callable[[Any, int], Any]) -> Arrays:
    """Change the lengths of paged sequences, given pages of p keys; queries keep their positions."""

    def arrays(spec: Spec, inputs: Inputs) -> Inputs | None:
        if "block_table" not in inputs:
            return None
        positions = {} if spec.rope == "none" else {"q_positions": query_positions(spec, inputs)}
        return {**inputs, **positions, "lengths": wrong(inputs["lengths"], inputs["k_pages"].shape[2])}

    return arrays


def _lengths_one_too_small(spec: Spec, inputs: Inputs) -> Inputs | None:
    """Count one key less, which the position of each query follows; else it is `own_key_masked`."""
    if "lengths" not in inputs or (spec.rope == "none" and spec.window is None):
        return None
    return {**inputs, "lengths": np.maximum(inputs["lengths"] - 1, 0)}


def _pages_in_memory_order(spec: Spec, inputs: Inputs) -> Numpy:
    table = inputs["block_table"]
    order: Numpy = np.arange(table.size).reshape(table.shape) % max(1, inputs["k_pages"].shape[0])
    return order


def _repeat_page_before_last(spec: Spec, inputs: Inputs) -> Numpy:
    table, lengths, p = inputs["block_table"].copy(), inputs["lengths"], inputs["k_pages"].shape[2]
    n = np.flatnonzero((lengths % p != 0) & (lengths > p))
    table[n, lengths[n] // p] = table[n, lengths[n] // p - 1]
    return table


def _newest_token_missing(spec: Spec, inputs: Inputs) -> Inputs | None:
    if "block_table" not in inputs:
        return None
    made, last, p = dict(inputs), inputs["lengths"] - 1, inputs["k_pages"].shape[2]
    n = np.flatnonzero(last >= 0)
    for name in ("k_pages", "v_pages"):
        made[name] = inputs[name].copy()
        made[name][inputs["block_table"][n, last[n] // p], :, last[n] % p] = 0
    return made


def _noise_first(spec: Spec, inputs: Inputs) -> Inputs | None:
    if spec.ratio == 1 or spec.pairing != "interleaved" or "q" not in inputs:
        return None
    B, H, *rest = inputs["q"].shape
    groups = inputs["q"].reshape(B, H // (spec.ratio + 1), spec.ratio + 1, *rest)
    return {**inputs, "q": np.roll(groups, -1, axis=2).reshape(B, H, *rest)}


def _first_key_lost(spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs] | None:
    S = inputs["k"].shape[2] if kind_of(inputs) == "dense" and spec.causal != "none" else 0
    return (spec.replace(window=S - 1), inputs) if S > 1 and (spec.window is None or spec.window >= S) else None


def _tile_key_heads(spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs] | None:
    """Repeat all key and value heads, one after the other, as often as there are query heads for each."""
    n = spec.query_heads // spec.key_heads
    if (spec.pairing, spec.keys, spec.gqa) != ("halves", "own", "pair_then_group") or spec.values == "wide":
        return None
    both = [f"{x}{end}" for x in "kv" for end in ("", "_pages", "_proj.weight", "_proj.bias")]
    tiled = {
        name: np.concatenate([inputs[name]] * n, axis=0 if "proj" in name else 1) for name in both if name in inputs
    }
    return spec.replace(key_heads=spec.query_heads), {**inputs, **tiled}


def _interleave_cached_keys(spec: Spec, inputs: Inputs) -> Inputs | None:
    if kind_of(inputs) != "dense" or spec.keys == "shared":
        return None
    k, old = inputs["k"].copy(), max(inputs["k"].shape[2] - inputs["q"].shape[2], 0)
    k[:, :, :old] = k[:, np.arange(spec.key_heads).reshape(2, -1).T.ravel(), :old]
    return {**inputs, "k": k}


INPUT_DEVIATIONS: tuple[Mistake, ...] = (
    *(misread(f"{name}_read_as_tokens_first", f"{what}, with heads before tokens in memory, read with tokens first.",
              "layout", arrays=_as_tokens_first(*names))
      for name, what, names in (
          ("queries", "q", ("q",)), ("keys", "k", ("k", "k_pages")), ("values", "v", ("v", "v_pages")),
          ("gate", "The gate's logits", ("gate_logits",)),
          ("qkv", "q, k and v", ("q", "k", "k_pages", "v", "v_pages")))),
    misread("lambda_read_as_heads_first", "λ's logits, (B, T, h) in memory, read as (B, h, T).", "layout",
            arrays=_as_tokens_first("lambda_logits")),
    misread("keys_and_values_swapped", "k and v exchanged.", "layout",
            arrays=_exchange(*((f"k{x}", f"v{x}") for x in ("", "_pages", "_proj.weight", "_proj.bias")))),
    misread("q_proj_transposed", "x W in place of x Wᵀ, W = q_proj.", "layout", arrays=_transpose("q_proj.weight")),
    misread("o_proj_transposed", "x W in place of x Wᵀ, W = o_proj.", "layout", arrays=_transpose("o_proj.weight")),
    misread("noise_head_first", "The first head of each group taken as its noise, where it is the last.", "ratio",
            arrays=_noise_first),
    misread("keys_tiled_before_pairing",
            "Query head i on key and value head i mod K, in place of i // (H / K): tiled, then paired.", "gqa",
            problem=_tile_key_heads),
    misread("cached_keys_in_other_pairing",
            "Cached keys stored branch by branch, but read pair by pair; the keys of this call are read correctly.",
            "cache", "B20", arrays=_interleave_cached_keys),
    misread("qk_norm_weights_swapped", "The weights of the norms of q and k exchanged.", "qk norm",
            arrays=_exchange(QK_WEIGHTS)),
    misread("no_padding_mask", "Padding tokens visible as keys.", "mask", arrays=ignore("key_mask")),
    misread("mask_ignored", "The given mask ignored.", "mask", arrays=ignore("mask")),
    misread("first_key_lost", "A window one key too short for the text: the last query does not see the first key.",
            "window", "B19", problem=_first_key_lost),
    misread("query_positions_one_low", "RoPE rotates queries by their position − 1, keys by their own.", "rope offset",
            arrays=_query_positions(lambda p: p - 1)),
    misread("query_positions_one_high", "RoPE rotates queries by their position + 1, keys by their own.", "rope offset",
            arrays=_query_positions(lambda p: p + 1)),
    misread("sinks_scaled", "The sink multiplied by 1/√d, or by the spec's scale, as scores are.", "sinks",
            arrays=change("sinks", lambda spec, x: x["sinks"] * scale_of(spec))),
    misread("sinks_in_base_2", "2^sink in place of e^sink: scores multiplied by log₂ e, and the sink not.", "sinks",
            arrays=change("sinks", lambda _, x: x["sinks"] * math.log(2))),
    misread("sinks_set_to_zero", "1 in place of e^sink in the denominator: the sinks not read.", "sinks",
            arrays=change("sinks", lambda _, x: 0 * x["sinks"])),
    misread("sinks_by_key_head", "The sink of key head h // (H/K) in place of that of query head h.", "sinks",
            arrays=change("sinks", lambda spec, x: np.repeat(
                x["sinks"][: spec.key_heads], spec.query_heads // spec.key_heads))),
    misread("past_ignored", "Past tokens (x_past) ignored.", "cache", arrays=ignore("x_past")),
    misread("sequences_not_separated", "Packed sequences see each other.", "packed",
            arrays=lambda _, x: None if "cu_seqlens_q" not in x or "k_pages" in x else {
                name: y for name, y in x.items() if not name.startswith("cu_seqlens")}),
    misread("positions_not_restarted", "Positions counted on across packed sequences.", "packed",
            arrays=_positions_not_restarted),
    misread("cu_seqlens_q_for_keys", "cu_seqlens_q in place of cu_seqlens_k: where keys start and end.", "packed",
            arrays=change("cu_seqlens_k", lambda _, x: x["cu_seqlens_q"],
                          lambda x: x["cu_seqlens_q"][-1] <= x["k"].shape[2])),
    misread("pages_in_memory_order", "Pages read in memory order, not in that of the block table.", "paged",
            arrays=change("block_table", _pages_in_memory_order)),
    misread("positions_of_longest_sequence", "Queries rotated by the positions of the longest sequence.", "paged",
            arrays=_positions_of_the_longest),
    misread("last_page_lost", "The last page of each sequence not read, unless it is full.", "paged",
            arrays=_lengths(lambda n, p: n // p * p)),
    misread("last_page_read_from_previous", "A last page that is not full read from where the page before it lies.",
            "paged", arrays=change("block_table", _repeat_page_before_last)),
    misread("last_page_not_masked", "The last page of each sequence read to its end, beyond the length.", "paged",
            arrays=_lengths(lambda n, p: -(-n // p) * p)),
)  # fmt: skip


RARE_INPUT_DEVIATIONS: tuple[Mistake, ...] = (
    *(misread(f"sinks_counted_{n}_times", f"The sink counted in each of {n} splits whose sums are merged.", "sinks",
              arrays=change("sinks", lambda _, x, n=n: x["sinks"] + math.log(n))) for n in (2, 4, 8)),  # type: ignore[misc]
    misread("bias_ignored", "The given bias ignored.", "bias", arrays=ignore("bias")),
    misread("bias_in_base_2", "The bias not multiplied by log₂ e, as the scores are for 2^z.", "bias",
            arrays=change("bias", lambda _, x: x["bias"] * math.log(2))),
    misread("bias_scaled", "The bias added before the scores are scaled: multiplied by 1/√d too.", "bias",
            arrays=change("bias", lambda spec, x: x["bias"] * scale_of(spec))),
    misread("positions_ignored", "The given positions ignored.", "positions",
            arrays=ignore("q_positions", "k_positions")),
    misread("query_angle_negated", "RoPE rotates queries by the opposite angle, and keys by theirs.", "direction",
            arrays=_query_positions(np.negative)),
    misread("key_angle_negated", "RoPE rotates keys by the opposite angle, and queries by theirs.", "direction",
            arrays=_key_positions(-1)),
    misread("keys_rotated_twice", "RoPE rotates keys again that are rotated already, as in a cache.", "direction",
            arrays=_key_positions(2)),
    misread("padding_of_sequence_0", "The padding mask of sequence 0 for every sequence.", "padding",
            arrays=lambda _, x: x if "key_mask" not in x else {
                **x, "key_mask": np.broadcast_to(x["key_mask"][:1], x["key_mask"].shape)}),
    misread("block_table_of_sequence_0", "The block table of sequence 0 for every sequence.", TABLE_AXIS,
            arrays=change("block_table", lambda _, x: 0 * x["block_table"] + x["block_table"][:1])),
    misread("block_table_off_by_one", "Each page read by the next entry of the block table.", TABLE_AXIS,
            arrays=change("block_table", lambda _, x: np.concatenate(
                [x["block_table"][:, 1:], x["block_table"][:, -1:]], axis=1))),
    misread("lengths_one_too_large", "Each sequence one key longer than its length.", TABLE_AXIS,
            arrays=change("lengths", lambda _, x: np.minimum(
                x["lengths"] + 1, x["block_table"].shape[1] * x["k_pages"].shape[2]))),
    misread("lengths_one_too_small",
            "Each sequence one key shorter than its length, as before the newest key is counted.", TABLE_AXIS,
            arrays=_lengths_one_too_small),
    misread("newest_token_not_written", "The newest key and value of each sequence read as zeros, before they are "
            "written to the cache.", TABLE_AXIS, arrays=_newest_token_missing),
    misread("length_of_longest_sequence", "The length of the longest sequence for every sequence.", TABLE_AXIS,
            arrays=_lengths(lambda n, p: np.full_like(n, np.max(n, initial=0)))),
)  # fmt: skip
