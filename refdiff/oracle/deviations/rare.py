"""Deviations that only `diagnose` tries: typical inputs show none of them, all inputs do, or there are too many."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation, Problem
from refdiff.oracle.deviations.input_deviations import INPUT_DEVIATIONS, TRIANGLE_DEVIATIONS, query_positions
from refdiff.oracle.deviations.spec_deviations import SPEC_DEVIATIONS
from refdiff.oracle.deviations.tiles import ONE_MAP_AXIS, ONLINE_AXIS, TILE_DEVIATIONS
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import attention_mask

MASK_AXES = ("mask", "mask align", "mask off by one", "window")
"""The axes of deviations that change which keys a query sees."""


def _mask_of_one_map(deviation: Deviation, number: int, spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs] | None:
    """Give one of the two maps the mask of a problem with a deviation."""
    wrong = deviation.apply(Problem(spec, inputs)) if kind_of(inputs) == "dense" else None
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


def _one_map_masks() -> Iterator[Deviation]:
    """Yield each deviation that changes a mask or the window, in the first map alone, and in the second."""

    def problem(deviation: Deviation, number: int) -> Callable[[Spec, Inputs], tuple[Spec, Inputs] | None]:
        return lambda spec, inputs: _mask_of_one_map(deviation, number, spec, inputs)

    every = (d for d in (*SPEC_DEVIATIONS, *INPUT_DEVIATIONS, *TRIANGLE_DEVIATIONS) if d.axis in MASK_AXES)
    for d in (d for d in every if not d.name.startswith("rows_that_see_nothing")):
        for number, which in enumerate(("first", "second")):
            name, what = f"{d.name}_in_the_{which}_map", f"{d.what.rstrip('.')}, in the {which} map alone."
            yield Deviation(name, what, ONE_MAP_AXIS, d.row, d.link, problem=problem(d, number))


def _turn_queries_back(spec: Spec, inputs: Inputs) -> Inputs | None:
    return None if spec.rope == "none" else {**inputs, "q_positions": -query_positions(spec, inputs)}


def _turn_keys_back(spec: Spec, inputs: Inputs) -> Inputs | None:
    if spec.rope == "none" or ("k_positions" not in inputs and kind_of(inputs) != "dense"):
        return None
    own = inputs["k_positions"] if "k_positions" in inputs else np.arange(inputs["k"].shape[2])[None]
    return {**inputs, "k_positions": -own}


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


RARE_DEVIATIONS: tuple[Deviation, ...] = (
    *TILE_DEVIATIONS,
    *_one_map_masks(),
    Deviation("queries_turned_the_other_way", "RoPE rotates queries by the opposite angle, and keys by theirs.",
              "direction", arrays=_turn_queries_back),
    Deviation("keys_turned_the_other_way", "RoPE rotates keys by the opposite angle, and queries by theirs.",
              "direction", arrays=_turn_keys_back),
    Deviation("padding_of_the_first_sequence", "The padding mask of sequence 0 for every sequence.", "padding",
              arrays=_mask_of_the_first_sequence),
    Deviation("first_key_of_a_page_from_the_page_before", "The first key of each page after the first read from the "
              "page before: page (s − 1) // p in place of s // p.", "paged", arrays=_begin_pages_with_the_page_before),
)  # fmt: skip
SINGLE_AXES = (ONLINE_AXIS, ONE_MAP_AXIS, "direction", "padding")
"""The axes of deviations that are not tried in pairs: there are many of them, or they are rare."""
