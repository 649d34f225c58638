"""Hypotheses that follow from the wrong tensors: lost keys, an order of heads, gradients that are zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np

from refdiff.oracle.budget.statistics import root_mean_square, safe_ratio
from refdiff.oracle.diagnosis.evidence import Case
from refdiff.oracle.diagnosis.hypotheses import Hypothesis, finish
from refdiff.oracle.inputs.sequences import Inputs, Numpy, select
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.in_tiles import TILE_SIZES
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import AttentionOperands, attention_operands, truth_ops, use_explicit_mask
from refdiff.oracle.truth.forward import apply_gate, differences, normalize_and_scale, out_shape
from refdiff.oracle.verdict.region_format import format_rows

LIMITS = THRESHOLDS.lost_tokens
MAX_SCORES = 2**22
"""The most scores that are computed at a time."""
KeySet = tuple[str, Numpy]
"""A set of keys, in words and as a mask."""
Change = Callable[[Numpy, Numpy, Numpy], Numpy]
"""What queries see (…, S) after a change, from what they see, their own keys (…, 1), and the numbers of all keys."""


def zeros(case: Case) -> Iterator[Hypothesis]:
    """Yield the hypothesis that the wrong tensors that are zero are zero."""
    names = [name for name in case.wrong if not case.actual[name].any()]
    if names:
        what = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} zero."
        yield Hypothesis(f"{', '.join(names)} zero", what, "zero", finish(names, lambda x, _: 0 * x))


def head_orders(case: Case) -> Iterator[Hypothesis]:
    """Yield the order of heads with which the truth is nearest to a wrong tensor."""
    for of in case.wrong:
        y, f = case.actual[of], case.expected[of]
        if y.ndim != 4 or not 1 < y.shape[1] <= THRESHOLDS.max_heads or not np.isfinite(y).all():
            continue
        apart = [[np.sum((y[:, i] - f[:, j]) ** 2) for j in range(f.shape[1])] for i in range(f.shape[1])]
        order = np.argmin(apart, axis=1).tolist()
        if sorted(order) == list(range(len(order))) and order != sorted(order):
            said = ", ".join(map(str, order))
            what = f"The heads of {of} are right but in another order: head i is head ({said})[i] of the truth."
            edit = finish((of,), lambda x, _, order=order: x[:, order])  # type: ignore[misc]
            yield Hypothesis(f"heads of {of} ordered {said}", what, "head order", edit)


def lost_keys(case: Case) -> Iterator[Hypothesis]:
    """Yield the keys that the wrong rows of a dense output lack, or see after their own, if this explains a sample.

    Some of the wrong rows are recomputed with each range of keys and each edge of tiles hidden.
    """
    spec, inputs, y = case.start.spec, case.start.inputs, case.actual["out"]
    if case.kind != "dense" or (S := inputs["k"].shape[2]) < 2:
        return
    # a row of zeros tells nothing about keys
    wrong = case.wrong_rows & np.isfinite(y).all(axis=-1) & np.any(y != 0, axis=-1)
    if not wrong.any():
        return
    alone, every = use_explicit_mask(spec, inputs)
    s, changes, off = np.arange(S), list(key_changes(S)), []
    visible = np.broadcast_to(every["mask"], (*wrong.shape, S))
    for b, h, t in (chosen := _sample_rows(wrong)):
        own = np.array(_own_keys(spec, inputs)[t])
        seen = np.stack([change(visible[b, h, t], own, s) for _, change in changes])
        out = _attend_to_sets(alone, every, (b, h, t), seen)
        off.append(safe_ratio(root_mean_square(y[b, h, t] - out), np.full(len(seen), case.errors["out"][b, h, t])))
    at = tuple(chosen.T)
    before = safe_ratio(root_mean_square(y[at] - case.expected["out"][at]), case.errors["out"][at])
    total = root_mean_square(np.nan_to_num(np.stack(off, axis=1), nan=np.inf))
    near = np.flatnonzero(total <= max(1.0, LIMITS.tie * float(total.min())))
    if total[near[0]] * THRESHOLDS.better_ratio > root_mean_square(before):
        return
    where = format_rows(wrong, np.ones_like(wrong), "bht")
    rows = np.flatnonzero(wrong.any(axis=(0, 1)))
    own_keys, see = _own_keys(spec, inputs)[rows][:, None], np.any(visible[:, :, rows], axis=(0, 1))
    known: set[bytes] = set()  # what the wrong rows see
    for n in near:
        words, change = changes[n]
        visible_keys = change(see, own_keys, s).tobytes()
        if visible_keys not in known and len(known) < LIMITS.alternatives:
            known.add(visible_keys)
            edit = partial(_change_keys, change, wrong, spec, inputs)
            what = f"{words[0].upper()}{words[1:]}, in {where or 'every head'}."
            yield Hypothesis(words, what, "lost keys", edit, on_sample=True, in_pairs=False)


def key_changes(n: int) -> Iterator[tuple[str, Change]]:
    """Yield changes of what a query sees of n keys, the simplest first."""
    for words, some in (*key_ranges(n), *tile_edges(n)):
        yield f"{words} not seen", lambda see, own, s, some=some: see & ~some  # type: ignore[misc]
    yield "the key after a query's own seen", lambda see, own, s: see | (s == own + 1)
    for n_keys in TILE_SIZES:
        yield (
            f"the {n_keys} keys after a query's own seen",
            lambda see, own, s, n=n_keys: see | ((s > own) & (s <= own + n)),  # type: ignore[misc]
        )
        yield (
            f"every key of the tile of {n_keys} that has a query's own seen",
            lambda see, own, s, n=n_keys: see | ((s > own) & (s // n == own // n)),  # type: ignore[misc]
        )
    yield "a query's own key not seen", lambda see, own, s: see & (s != own)


def _own_keys(spec: Spec, inputs: Inputs) -> Numpy:
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    return np.arange(T) + (0 if spec.causal == "top_left" else S - T)


def _change_keys(change: Change, wrong: Numpy, spec: Spec, inputs: Inputs, kernel: Kernel, _: float) -> Kernel | None:
    """Change what the wrong rows (B, h, T) of a dense case see."""
    if kernel.inputs["k"].shape != inputs["k"].shape:
        return None
    rows = np.arange(wrong.shape[2]) if kernel.queries is None else kernel.queries
    masked, every = use_explicit_mask(kernel.spec, kernel.inputs)
    here = wrong[:, :, rows]
    if (here == here[:, :1]).all():
        here = here[:, :1]
    elif not spec.is_plain:  # the masks of the first maps, then those of the second ones
        here = np.concatenate([here, here], axis=1)
    see = every["mask"]
    changed = change(see, _own_keys(spec, inputs)[rows][:, None], np.arange(see.shape[-1]))
    return replace(kernel, spec=masked, inputs={**every, "mask": np.where(here[..., None], changed, see)})


def _attend_to_sets(alone: Spec, every: Inputs, row: tuple[int, int, int], seen: Numpy) -> Numpy:
    """Compute one row of the output for each set of visible keys: (sets, S) to (sets, e)."""
    (b, h, t), ops = row, truth_ops()
    together = alone.norm_over == "all_heads"
    n = max(1, MAX_SCORES // (seen.shape[1] * (alone.heads if together else 1)))
    found: list[Numpy] = []
    for some in (seen[start : start + n] for start in range(0, len(seen), n)):
        part = select(every, slice(b, b + 1), np.full(len(some), t), slice(None)) | {"mask": some[None, None]}
        operands = attention_operands(alone, part, ops)
        heads = differences(alone, operands if together else _select_head(operands, h, alone.heads), ops)
        heads = np.broadcast_to(heads, out_shape(alone, part))  # head h is returned below
        found.append(apply_gate(alone, normalize_and_scale(alone, heads, part, ops), part, ops)[0, h])
    return np.concatenate(found)


def _select_head(operands: AttentionOperands, head: int, heads: int) -> AttentionOperands:
    """Select the operands of one output head from axis 1, of size 1, h, or 2h if it has both maps."""
    arrays = {name: x for name, x in vars(operands).items() if np.ndim(x) == 4}
    return replace(operands, **{name: x[:, head % x.shape[1] :: heads] for name, x in arrays.items()})


def _sample_rows(wrong: Numpy) -> Numpy:
    """Return the indices of some wrong rows, evenly spread over all of them: (rows, axes)."""
    places = np.argwhere(wrong)
    sample: Numpy = places[np.unique(np.linspace(0, len(places) - 1, LIMITS.rows).astype(int))]
    return sample


def key_ranges(n: int) -> list[KeySet]:
    """Return ranges of n keys, the simplest first: single keys, suffixes, prefixes, others; those of tiles before."""
    i, edge, single = np.arange(n), *(_next_power_of_two(n / most) for most in (LIMITS.edges, LIMITS.singles))
    found = [*combinations([*range(0, n, edge), n], 2), *((a, a + 1) for a in range(0, n, single))]

    def rank(ends: tuple[int, int]) -> tuple[bool, ...]:
        a, b = ends
        return b - a > 1, b < n, a > 0, a % TILE_SIZES[0] > 0 or b % TILE_SIZES[0] > 0

    said = {}
    for a, b in sorted(dict.fromkeys(found), key=rank):
        if b - a == 1:
            said[a, b] = f"key {a}"
        elif b - a < n:
            said[a, b] = f"keys from {a} on" if b == n else f"keys {a} to {b - 1}"
    return [(words, (a <= i) & (i < b)) for (a, b), words in said.items()]


def _next_power_of_two(x: float) -> int:
    """Return the smallest power of two that is at least x and at least 1."""
    return 1 << max(0, math.ceil(math.log2(x)))


def tile_edges(n: int) -> list[KeySet]:
    """Return the first key of each tile, the same without the first tile, and the last key of each tile."""
    i, found = np.arange(n), []
    for tile in (size for size in TILE_SIZES if size < n):
        of = f"key of each tile of {tile}"
        found.append((f"the first {of}", i % tile == 0))
        found.append((f"the first {of} after the first", (i % tile == 0) & (i > 0)))
        found.append((f"the last {of}", i % tile == tile - 1))
    return found
