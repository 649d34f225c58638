"""Deviations that only `diagnose` tries: typical inputs show none of them, all inputs do, or there are too many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.mistakes.catalogue import Kernel, Mistake, misread
from refdiff.oracle.mistakes.in_inputs import (
    INPUT_DEVIATIONS,
    TRIANGLE_DEVIATIONS,
    change_query_positions,
    ignore_inputs,
    replace_input,
    round_lengths,
)
from refdiff.oracle.mistakes.in_spec import SPEC_DEVIATIONS
from refdiff.oracle.mistakes.in_tiles import ONE_MAP_ALIGN_AXIS, ONE_MAP_AXIS, ONLINE_AXIS, TILE_DEVIATIONS
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import attention_mask, head_indices

MASK_AXES = ("mask", "mask align", "mask off by one", "window")
"""The axes of deviations that change which keys a query sees."""
TABLE_AXIS = "tables"
"""The axis of deviations that misread the tables of packed and paged sequences."""


def _mask_of_one_map(deviation: Mistake, number: int, spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs] | None:
    """Give one of the two maps the mask of a problem with a deviation."""
    wrong = deviation.apply(Kernel(spec, inputs)) if kind_of(inputs) == "dense" else None
    if wrong is None:
        return None
    masks = [attention_mask(spec, inputs)] * 2
    masks[number] = attention_mask(wrong.spec, wrong.inputs)
    shape = np.broadcast_shapes(masks[0].shape, masks[1].shape, (1, spec.heads, 1, 1))
    first, second = (np.broadcast_to(x, shape) for x in masks)
    if np.array_equal(first, second):
        return spec, inputs
    made = {name: x for name, x in inputs.items() if name != "key_mask"}
    return spec.replace(causal="none", window=None), {**made, "mask": np.concatenate([first, second], axis=1)}


def _one_map_masks() -> Iterator[Mistake]:
    """Yield each deviation that changes a mask or the window, in the first map alone, and in the second."""
    every = (d for d in (*SPEC_DEVIATIONS, *INPUT_DEVIATIONS, *TRIANGLE_DEVIATIONS) if d.axis in MASK_AXES)
    for d in (d for d in every if not d.name.startswith("masked_rows")):
        for number, which in enumerate(("first", "second")):
            name, what = f"{d.name}_in_{which}_map", f"{d.what.rstrip('.')}, in the {which} map alone."
            axis = ONE_MAP_ALIGN_AXIS if d.axis == "mask align" else ONE_MAP_AXIS
            yield misread(name, what, axis, d.row, d.link, problem=partial(_mask_of_one_map, d, number))


def _scale_key_positions(factor: int, spec: Spec, inputs: Inputs) -> Inputs | None:
    """Rotate keys by the angles of their positions times `factor`."""
    own = None if spec.rope == "none" else _key_positions(inputs)
    return None if own is None else {**inputs, "k_positions": factor * own}


def _key_positions(inputs: Inputs) -> Numpy | None:
    """Return the positions of keys, (B or 1, S); None for a whole layer without them."""
    if "k_positions" in inputs:
        return inputs["k_positions"]
    kind = kind_of(inputs)
    if kind == "layer":
        return None
    if kind == "packed":
        counts = np.diff(inputs.get("cu_seqlens_k", inputs["cu_seqlens_q"]))
        return np.concatenate([np.arange(n) for n in counts])[None]
    return np.arange(np.max(inputs["lengths"], initial=0) if kind == "paged" else inputs["k"].shape[2])[None]


def _mask_of_the_first_sequence(spec: Spec, inputs: Inputs) -> Inputs:
    mask = inputs.get("key_mask")
    return inputs if mask is None else {**inputs, "key_mask": np.broadcast_to(mask[:1], mask.shape)}


def _begin_pages_with_the_page_before(spec: Spec, inputs: Inputs) -> Inputs | None:
    if "block_table" not in inputs:
        return None
    table, made = inputs["block_table"], dict(inputs)
    for name in ("k_pages", "v_pages"):
        pages = inputs[name][table]  # (B, pages, K, p, d)
        pages[:, 1:, :, 0] = inputs[name][table[:, :-1], :, 0]
        made[name] = pages.reshape(-1, *pages.shape[2:])
    return {**made, "block_table": np.arange(table.size).reshape(table.shape)}


def _lengths_one_too_small(spec: Spec, inputs: Inputs) -> Inputs | None:
    """Count one key less, which the position of each query follows; else it is `own_key_masked`."""
    if "lengths" not in inputs or (spec.rope == "none" and spec.window is None):
        return None
    return {**inputs, "lengths": np.maximum(inputs["lengths"] - 1, 0)}


def _window_from_page_edge(spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs] | None:
    """Drop the pages before that of the first key in the window of the first query, and see all others.

    With RoPE, scores depend on distances, which stay as they are. Where no page is dropped it is a missing window.
    """
    if "block_table" not in inputs or "cu_seqlens_q" in inputs or "q_positions" in inputs or spec.window is None:
        return None
    if spec.causal != "bottom_right":  # the first query is another, or the window has two sides
        return None
    T, p = inputs["q"].shape[2], inputs["k_pages"].shape[2]
    dropped = np.maximum(inputs["lengths"] - T - spec.window + 1, 0) // p
    if not dropped.any():
        return None
    pages = dropped[:, None] + np.arange(inputs["block_table"].shape[1])
    table = np.take_along_axis(inputs["block_table"], np.minimum(pages, pages.shape[1] - 1), axis=1)
    return spec.replace(window=None), {**inputs, "block_table": table, "lengths": inputs["lengths"] - dropped * p}


def _newest_token_missing(spec: Spec, inputs: Inputs) -> Inputs | None:
    if "block_table" not in inputs:
        return None
    made, last, p = dict(inputs), inputs["lengths"] - 1, inputs["k_pages"].shape[2]
    n = np.flatnonzero(last >= 0)
    for name in ("k_pages", "v_pages"):
        made[name] = inputs[name].copy()
        made[name][inputs["block_table"][n, last[n] // p], :, last[n] % p] = 0
    return made


def _sinks_of_one_map(number: int, spec: Spec, inputs: Inputs) -> Numpy:
    heads = head_indices(spec)
    return np.where(np.isin(np.arange(spec.query_heads), (heads.q1, heads.q2)[number]), inputs["sinks"], -np.inf)


def _count_sinks(times: int, spec: Spec, inputs: Inputs) -> Numpy:
    return inputs["sinks"] + math.log(times)


def _count_keys_as_queries(spec: Spec, inputs: Inputs) -> Inputs | None:
    if "cu_seqlens_k" not in inputs or inputs["cu_seqlens_q"][-1] > inputs["k"].shape[2]:
        return None
    return {**inputs, "cu_seqlens_k": inputs["cu_seqlens_q"]}


RARE_DEVIATIONS: tuple[Mistake, ...] = (
    *TILE_DEVIATIONS,
    *_one_map_masks(),
    *(misread(f"sinks_in_{which}_map", f"The sink in the denominator of the {which} map alone.", ONE_MAP_AXIS,
                arrays=partial(replace_input, "sinks", partial(_sinks_of_one_map, number)))
      for number, which in enumerate(("first", "second"))),
    *(misread(f"sinks_counted_{n}_times", f"The sink counted in each of {n} splits whose sums are merged.",
                "sinks", arrays=partial(replace_input, "sinks", partial(_count_sinks, n)))
      for n in (2, 4, 8)),
    *(replace(d, axis="padding") for d in INPUT_DEVIATIONS if d.name == "mask_ignored"),
    misread("bias_ignored", "The given bias ignored.", "bias", arrays=partial(ignore_inputs, ("bias",))),
    misread("bias_in_base_2", "The bias not multiplied by log₂ e, as the scores are for 2^z.", "bias",
              arrays=partial(replace_input, "bias", lambda _, x: x["bias"] * math.log(2))),
    misread("bias_scaled", "The bias added before the scores are scaled: multiplied by 1/√d too.", "bias",
              arrays=partial(replace_input, "bias", lambda spec, x: x["bias"] * (spec.scale or spec.head_dim**-0.5))),
    misread("positions_ignored", "The given positions ignored.", "positions",
              arrays=partial(ignore_inputs, ("q_positions", "k_positions"))),
    misread("query_angle_negated", "RoPE rotates queries by the opposite angle, and keys by theirs.",
              "direction", arrays=partial(change_query_positions, np.negative)),
    misread("key_angle_negated", "RoPE rotates keys by the opposite angle, and queries by theirs.",
              "direction", arrays=partial(_scale_key_positions, -1)),
    misread("keys_rotated_twice", "RoPE rotates keys again that are rotated already, as in a cache.", "direction",
              arrays=partial(_scale_key_positions, 2)),
    misread("padding_of_sequence_0", "The padding mask of sequence 0 for every sequence.", "padding",
              arrays=_mask_of_the_first_sequence),
    misread("first_key_from_previous_page", "The first key of each page after the first read from the "
              "page before: page (s − 1) // p in place of s // p.", "paged", arrays=_begin_pages_with_the_page_before),
    misread("block_table_of_sequence_0", "The block table of sequence 0 for every sequence.", TABLE_AXIS,
              arrays=partial(replace_input, "block_table", lambda _, x: 0 * x["block_table"] + x["block_table"][:1])),
    misread("block_table_off_by_one", "Each page read by the next entry of the block table.", TABLE_AXIS,
              arrays=partial(replace_input, "block_table", lambda _, x: np.concatenate(
                  [x["block_table"][:, 1:], x["block_table"][:, -1:]], axis=1))),
    misread("lengths_one_too_large", "Each sequence one key longer than its length.", TABLE_AXIS,
              arrays=partial(replace_input, "lengths", lambda _, x: np.minimum(
                  x["lengths"] + 1, x["block_table"].shape[1] * x["k_pages"].shape[2]))),
    misread("lengths_one_too_small",
              "Each sequence one key shorter than its length, as before the newest key is counted.", TABLE_AXIS,
              arrays=_lengths_one_too_small),
    misread("window_from_page_edge", "The window starts at the first key of its first page, not within the page.",
              TABLE_AXIS, problem=_window_from_page_edge),
    misread("newest_token_not_written", "The newest key and value of each sequence read as zeros, before they are "
              "written to the cache.", TABLE_AXIS, arrays=_newest_token_missing),
    misread("length_of_longest_sequence", "The length of the longest sequence for every sequence.", TABLE_AXIS,
              arrays=partial(round_lengths, lambda n, p: np.full_like(n, np.max(n, initial=0)))),
    misread("cu_seqlens_q_for_keys", "cu_seqlens_q in place of cu_seqlens_k: where keys start and end.", TABLE_AXIS,
              arrays=_count_keys_as_queries),
)  # fmt: skip
SINGLE_AXES = (ONLINE_AXIS, ONE_MAP_AXIS, ONE_MAP_ALIGN_AXIS, TABLE_AXIS, "direction", "padding", "positions", "bias")
"""The axes of deviations that are not tried in pairs: there are many of them, or they are rare."""
