"""Deviations that misread the inputs: their memory layout, packed sequences, pages, masks and positions.

A deviation that ignores an input also applies where this input is not given: the kernel is correct there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.inputs.sequences import Inputs, Numpy, sequences
from refdiff.oracle.mistakes.catalogue import Mistake, misread, read_as_tokens_first
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
    """Read heads before tokens, or tokens before heads, in the memory of some inputs; that of pages page by page."""

    def arrays(_: Spec, inputs: Inputs) -> Inputs | None:
        found = [name for name in names if name in inputs]
        return {**inputs, **{name: read_as_tokens_first(inputs[name]) for name in found}} if found else None

    return arrays


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


def _positions_not_restarted(spec: Spec, inputs: Inputs) -> Inputs | None:
    if "cu_seqlens_k" not in inputs or "q_positions" in inputs or spec.rope == "none":
        return None
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    return {**inputs, "q_positions": np.arange(T)[None], "k_positions": np.arange(S)[None]}


def _lengths(wrong: Callable[[Any, int], Any]) -> Arrays:
    """Change the lengths of paged sequences, given pages of p keys; queries keep their positions."""

    def arrays(spec: Spec, inputs: Inputs) -> Inputs | None:
        if "block_table" not in inputs:
            return None
        positions = {} if spec.rope == "none" else {"q_positions": query_positions(spec, inputs)}
        return {**inputs, **positions, "lengths": wrong(inputs["lengths"], inputs["k_pages"].shape[2])}

    return arrays


def _pages_in_memory_order(spec: Spec, inputs: Inputs) -> Numpy:
    table = inputs["block_table"]
    order: Numpy = np.arange(table.size).reshape(table.shape) % max(1, inputs["k_pages"].shape[0])
    return order


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


INPUT_DEVIATIONS: tuple[Mistake, ...] = (
    *(misread(f"{name}_read_as_tokens_first", f"{what}, with heads before tokens in memory, read with tokens first.",
              "layout", arrays=_as_tokens_first(*names))
      for name, what, names in (
          ("queries", "q", ("q",)), ("keys", "k", ("k", "k_pages")), ("values", "v", ("v", "v_pages")),
          ("gate", "The gate's logits", ("gate_logits",)),
          ("qkv", "q, k and v", ("q", "k", "k_pages", "v", "v_pages")))),
    misread("noise_head_first", "The first head of each group taken as its noise, where it is the last.", "ratio",
            arrays=_noise_first),
    misread("no_padding_mask", "Padding tokens visible as keys.", "mask", arrays=ignore("key_mask")),
    misread("mask_ignored", "The given mask ignored.", "mask", arrays=ignore("mask")),
    misread("query_positions_one_low", "RoPE rotates queries by their position − 1, keys by their own.", "rope offset",
            arrays=_query_positions(lambda p: p - 1)),
    misread("query_positions_one_high", "RoPE rotates queries by their position + 1, keys by their own.", "rope offset",
            arrays=_query_positions(lambda p: p + 1)),
    misread("sinks_scaled", "The sink multiplied by 1/√d, or by the spec's scale, as scores are.", "sinks",
            arrays=change("sinks", lambda spec, x: x["sinks"] * scale_of(spec))),
    misread("sinks_in_base_2", "2^sink in place of e^sink: scores multiplied by log₂ e, and the sink not.", "sinks",
            arrays=change("sinks", lambda _, x: x["sinks"] * math.log(2))),
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
    misread("last_page_lost", "The last page of each sequence not read, unless it is full.", "paged",
            arrays=_lengths(lambda n, p: n // p * p)),
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
    misread("newest_token_not_written", "The newest key and value of each sequence read as zeros, before they are "
            "written to the cache.", TABLE_AXIS, arrays=_newest_token_missing),
)  # fmt: skip
