"""The contract of equal bits: a row is the same alone and in a batch, in one prefill and in chunks, in pages, packed.

Training and inference of reinforcement learning need it: log-probabilities that both compute from the same weights are
compared. The relations have the form of `refdiff.oracle.suite.relations`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refdiff.oracle.cases.fixed import Case, cases
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs, select, sequences
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.suite.relations import Kernel, compare_bits, require, run

Relation = Callable[[Kernel, Spec, Inputs, Recipe], str]
ALL = slice(None)
BATCH, TOKENS = 5, 130
"""Sizes of the dense case: two whole tiles of 64 and a part of one."""


def same_bits_in_a_batch(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """A sequence gives the same bits alone and in a batch."""
    together = run(kernel, spec, inputs)
    for b in range(len(together)):
        alone = run(kernel, spec, select(inputs, slice(b, b + 1), ALL, ALL))
        if wrong := compare_bits(alone, together[b : b + 1], f"sequence {b} alone and in a batch of {len(together)}"):
            return wrong
    return ""


def same_bits_in_chunks(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """A prompt gives the same bits in one prefill and in chunks, one of them a single token."""
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    require(spec.causal == "bottom_right" and T > 1, "a causal spec and two tokens")
    whole = run(kernel, spec, inputs)
    for start, stop in ((0, T // 2), (T // 2, T // 2 + 1), (T // 2 + 1, T)):
        chunk = run(kernel, spec, select(inputs, ALL, slice(start, stop), slice(0, S - T + stop)))
        if wrong := compare_bits(chunk, whole[:, :, start:stop], f"tokens {start} to {stop - 1} as a chunk and in one"):
            return wrong
    return ""


def same_bits_in_pages(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """A sequence gives the same bits from paged and from dense keys."""
    for part in sequences(inputs):
        n = slice(part.number, part.number + 1)
        paged = {name: x for name, x in part.inputs.items() if name not in ("k", "v")}
        paged |= {name: inputs[name] for name in ("k_pages", "v_pages")}
        paged |= {name: inputs[name][n] for name in ("block_table", "lengths")}
        dense = run(kernel, spec, {name: np.array(x, order="C") for name, x in part.inputs.items()})
        if wrong := compare_bits(run(kernel, spec, paged), dense, f"sequence {part.number} from pages and dense"):
            return wrong
    return ""


def same_bits_when_packed(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """A sequence gives the same bits alone and packed with others."""
    together = run(kernel, spec, inputs)
    for part in sequences(inputs):
        if part.is_empty:
            continue
        alone = run(kernel, spec, part.inputs)
        if wrong := compare_bits(alone, together[part.index], f"sequence {part.number} alone and packed"):
            return wrong
    return ""


BITWISE: dict[str, Relation] = {
    "batch": same_bits_in_a_batch,
    "chunk": same_bits_in_chunks,
    "page": same_bits_in_pages,
    "packing": same_bits_when_packed,
}
"""The relations by the names that `--refdiff-bitwise` has for them."""


def bitwise_cases(relation: Relation, spec: Spec, dtype: str, seed: int) -> list[Case]:
    """Return the cases of a relation."""
    if relation in (same_bits_in_a_batch, same_bits_in_chunks):
        return cases("natural", seed, spec=spec, dtype=dtype, batch=BATCH, queries=TOKENS)
    found = [
        case for profile in ("tiles", "serving", "layout") for case in cases(profile, seed, spec=spec, dtype=dtype)
    ]
    if relation is same_bits_in_pages:
        return [case for case in found if kind_of(case.inputs) == "paged" and "cu_seqlens_q" not in case.inputs]
    return [case for case in found if kind_of(case.inputs) == "packed"]
