"""Find keys that wrong rows of an output lack, and queries, heads or sequences that gradients are not summed over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.statistics import root_mean_square, safe_ratio
from refdiff.oracle.diagnosis.evidence import Case
from refdiff.oracle.diagnosis.hypotheses import Hypothesis
from refdiff.oracle.diagnosis.region_format import AXIS_NAMES, find_boxes, format_boxes
from refdiff.oracle.inputs import is_layer, kind_of
from refdiff.oracle.inputs.sequences import Inputs, Numpy, select
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.in_tiles import TILE_SIZES
from refdiff.oracle.mistakes.kernel import compute
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import AttentionOperands, attention_operands, use_explicit_mask
from refdiff.oracle.truth.forward import apply_gate, differences, normalize_and_scale, out_shape

LIMITS = THRESHOLDS.lost_tokens
MAX_SCORES = 2**22
"""The most scores that are computed at a time."""
TokenSet = tuple[str, Numpy]
"""A set of tokens, in words and as a mask."""


@dataclass(frozen=True)
class KeyChange:
    """Keys that a query does not see, or sees besides, in words and as functions of its own key and of all keys."""

    words: str
    hidden: Callable[[Numpy, Numpy], Numpy] | None = None
    shown: Callable[[Numpy, Numpy], Numpy] | None = None

    def apply(self, own: Numpy, s: Numpy, see: Numpy) -> Numpy:
        """Return what queries see, (…, S), whose own keys are `own` (…, 1)."""
        see = see if self.hidden is None else see & ~self.hidden(own, s)
        return see if self.shown is None else see | self.shown(own, s)


def lost_keys(case: Case) -> Iterator[Hypothesis]:
    """Yield the keys that the wrong rows of a dense output lack, or see after their own, if this explains a sample.

    Some of the wrong rows are recomputed with each range of keys and each edge of tiles hidden.
    """
    spec, inputs, y = case.start.spec, case.start.inputs, case.actual["out"]
    if kind_of(inputs) != "dense" or (S := inputs["k"].shape[2]) < 2:
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
        seen = np.stack([change.apply(own, s, visible[b, h, t]) for change in changes])
        out = _attend_to_sets(alone, every, (b, h, t), seen)
        off.append(safe_ratio(root_mean_square(y[b, h, t] - out), np.full(len(seen), case.errors["out"][b, h, t])))
    at = tuple(chosen.T)
    before = safe_ratio(root_mean_square(y[at] - case.expected["out"][at]), case.errors["out"][at])
    total = root_mean_square(np.nan_to_num(np.stack(off, axis=1), nan=np.inf))
    near = np.flatnonzero(total <= max(1.0, LIMITS.tie * float(total.min())))
    if total[near[0]] * THRESHOLDS.better_ratio > root_mean_square(before):
        return
    every_row = np.ones_like(wrong)
    place = format_boxes(find_boxes(wrong, every_row), every_row, [AXIS_NAMES[a] for a in "bht"], "every head")
    where = place or f"{wrong.sum()} of {wrong.size} rows"
    rows = np.flatnonzero(wrong.any(axis=(0, 1)))
    own_keys, see = _own_keys(spec, inputs)[rows][:, None], np.any(visible[:, :, rows], axis=(0, 1))
    known: set[bytes] = set()  # what the wrong rows see
    for n in near:
        visible_keys = changes[n].apply(own_keys, s, see).tobytes()
        if visible_keys in known or len(known) == LIMITS.alternatives:
            continue
        known.add(visible_keys)
        words = changes[n].words
        yield Hypothesis(
            words.format(was="", were="").replace("  ", " "),
            f"It is as if {words.format(was='was', were='were')} in {where}.",
            "lost keys", partial(_change_keys, changes[n], wrong, spec, inputs), on_sample=True, in_pairs=False,
        )  # fmt: skip


def key_changes(n: int) -> Iterator[KeyChange]:
    """Yield changes of what a query sees of n keys, the simplest first."""
    for words, some in token_ranges(n, "key"):
        yield KeyChange(f"{words} not seen", lambda own, s, some=some: some)  # type: ignore[misc]
    yield KeyChange("the key after a query's own {was} seen", shown=lambda own, s: s == own + 1)
    for tile in TILE_SIZES:
        yield KeyChange(
            f"the {tile} keys after a query's own {{were}} seen",
            shown=lambda own, s, n=tile: (s > own) & (s <= own + n),  # type: ignore[misc]
        )
        yield KeyChange(
            f"every key of the tile of {tile} that has a query's own {{was}} seen",
            shown=lambda own, s, n=tile: (s > own) & (s // n == own // n),  # type: ignore[misc]
        )
    yield KeyChange("a query's own key {was} not seen", lambda own, s: s == own)
    for words, some in tile_edges(n, "key"):
        yield KeyChange(f"{words} not seen", lambda own, s, some=some: some)  # type: ignore[misc]
        yield KeyChange(
            f"{words} not seen, but a query's own",
            lambda own, s, some=some: some & (s != own),  # type: ignore[misc]
        )


def _own_keys(spec: Spec, inputs: Inputs) -> Numpy:
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    return np.arange(T) + (0 if spec.causal == "top_left" else S - T)


def _change_keys(
    change: KeyChange, wrong: Numpy, spec: Spec, inputs: Inputs, kernel: Kernel, _: float
) -> Kernel | None:
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
    own = _own_keys(spec, inputs)[rows][:, None]
    changed = change.apply(own, np.arange(see.shape[-1]), see)
    return replace(kernel, spec=masked, inputs={**every, "mask": np.where(here[..., None], changed, see)})


def _attend_to_sets(alone: Spec, every: Inputs, row: tuple[int, int, int], seen: Numpy) -> Numpy:
    """Compute one row of the output for each set of visible keys: (sets, S) to (sets, e)."""
    (b, h, t), ops = row, ops_for()
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


def lost_parts(cases: Sequence[Case]) -> Iterator[Hypothesis]:
    """Yield the sequence, head or queries that wrong gradients lack, or that they alone have: blocks that do not add.

    Equation:
        a gradient is linear in ∂L/∂O, so that its part from some queries, heads or sequences is that of ∂L/∂O with
        zeros elsewhere
    """
    wrong = sorted({name for case in cases for name in case.wrong})
    if not wrong or is_layer(cases[0].start.inputs):
        return
    shapes = [case.dout.shape for case in cases if case.dout is not None]
    for axis, word in enumerate(("sequence", "head")):
        count = min(shape[axis] for shape in shapes)
        for n in range(count if 1 < count <= THRESHOLDS.max_parts else 0):
            for alone in (True, False)[: count - 1]:
                said = f"from {word} {n} alone" if alone else f"without {word} {n}"
                yield from _part(cases, wrong, axis, said, partial(_taken, n, alone))
    names = [name for name in wrong if name in ("dk", "dv")]
    if names and len(cases) == 1 and kind_of(cases[0].start.inputs) == "dense":
        yield from _lost_queries(cases[0], names)


def _taken(number: int, alone: bool, size: int) -> Numpy:
    taken: Numpy = (np.arange(size) == number) == alone
    return taken


def _part(
    cases: Sequence[Case], wrong: Sequence[str], axis: int, said: str, taken: Callable[[int], Numpy]
) -> Iterator[Hypothesis]:
    """Yield the hypothesis of a part for the wrong gradients that are near to it, if there are any."""
    near = list(wrong)
    for case in cases:
        found = compute(_with_part(tuple(near), axis, taken, case.start, 0.0), near, dout=case.dout) or {}
        near = [name for name in near if _is_near(case, name, found.get(name))]
    if near:
        which = f"{' and '.join(near)} {'is' if len(near) == 1 else 'are'}"
        yield Hypothesis(
            f"{', '.join(near)} {said}",
            f"{which} summed {said}.",
            "part",
            partial(_with_part, tuple(near), axis, taken),
        )


def _is_near(case: Case, name: str, found: Numpy | None) -> bool:
    y, f, E = case.actual[name], case.expected[name], case.errors[name]
    if found is None or found.shape != y.shape or not y.any() or not np.isfinite(y).all():
        return False
    before, left = (float(np.sqrt(np.mean(safe_ratio(root_mean_square(y - x), E) ** 2))) for x in (f, found))
    chance = THRESHOLDS.chance if name in case.budget.sums else 1 / THRESHOLDS.better_ratio
    return left < min(THRESHOLDS.gradient_residual, chance * before)


def _with_part(names: tuple[str, ...], axis: int, taken: Callable[[int], Numpy], kernel: Kernel, _: float) -> Kernel:
    shape = [1, 1, 1, 1]
    q = kernel.inputs["q"]
    sizes = (q.shape[0], kernel.spec.heads, q.shape[2])
    shape[axis] = -1
    return replace(kernel, part=(names, taken(sizes[axis]).astype(np.float64).reshape(shape)))


def _lost_queries(case: Case, names: Sequence[str]) -> Iterator[Hypothesis]:
    """Yield the queries that dk and dv lack, from their parts of each query or of blocks of queries."""
    T = case.start.inputs["q"].shape[2]
    block, terms = _next_power_of_two(T / LIMITS.short), []
    for start in range(0, T, block):
        taken = partial(_between, start, start + block)
        terms.append(compute(_with_part(tuple(names), 2, taken, case.start, 0.0), names, dout=case.dout) or {})
    sets = [*token_ranges(T, "query"), *tile_edges(T, "query")]
    sets = [(words, some) for words, some in sets if np.array_equal(some, np.repeat(some[::block], block)[:T])]
    masks, totals = dict(sets), []
    lost = np.stack([some[::block] for some in masks.values()]).astype(np.float64)
    for name in names:
        parts = np.stack([term[name] for term in terms])
        missing = case.expected[name] - case.actual[name]
        rows = tuple(_sample_rows(root_mean_square(missing) > 0).T)
        off = np.tensordot(lost, parts[:, *rows], 1) - missing[rows]
        totals.append(root_mean_square(safe_ratio(root_mean_square(off), case.errors[name][rows])))
    together = np.max(totals, axis=0)
    if together.min() <= max(1.0, *(LIMITS.tie * float(total.min()) for total in totals)):
        near = np.flatnonzero(together <= max(1.0, LIMITS.tie * float(together.min())))
        chosen = {(n, tuple(names)) for n in (*near[: LIMITS.alternatives - 1], np.argmin(together))}
    else:
        chosen = {(np.argmin(total), (name,)) for total, name in zip(totals, names, strict=True)}
    for n, some in sorted(chosen):
        words, hidden = list(masks.items())[n]
        said = f"without {words.format(was='', were='').strip()}"
        yield from _part((case,), some, 2, said, lambda size, hidden=hidden: ~hidden)  # type: ignore[misc]


def _between(start: int, stop: int, size: int) -> Numpy:
    i = np.arange(size)
    return (start <= i) & (i < stop)


def token_ranges(n: int, name: str) -> list[TokenSet]:
    """Return ranges of n tokens, the simplest first: suffixes, prefixes, single tokens, tiles, others."""
    edges = range(0, n, _next_power_of_two(n / LIMITS.edges))
    several = {"key": "keys", "query": "queries"}[name]
    at = [a for a in edges if a and a % LIMITS.tile == 0]
    found = [(a, n) for a in at] + [(0, b) for b in at]
    at_edges = (0, LIMITS.singles_tile - 1)
    found += [(a, a + 1) for a in range(n) if n <= LIMITS.singles or a % LIMITS.singles_tile in at_edges]
    found += [(a, a + tile) for tile in TILE_SIZES for a in edges if a % tile == 0 and a + tile <= n]
    found += [(a, b) for a in edges for b in (*edges, n) if b > a]
    if n <= LIMITS.singles:
        found += [(a, n) for a in range(n)] + [(0, b) for b in range(1, n)]
    if n <= LIMITS.short:
        found += [(a, a + length) for length in range(2, LIMITS.short_range + 1) for a in range(n - length)]
    i, said = np.arange(n), {}
    for a, b in dict.fromkeys(found):
        if b - a == 1:
            said[a, b] = f"{name} {a} {{was}}"
        elif b - a < n:
            said[a, b] = f"{several} from {a} on {{were}}" if b == n else f"{several} {a} to {b - 1} {{were}}"
    return [(words, (a <= i) & (i < b)) for (a, b), words in said.items()]


def _next_power_of_two(x: float) -> int:
    """Return the smallest power of two that is at least x and at least 1."""
    return 1 << max(0, math.ceil(math.log2(x)))


def tile_edges(n: int, name: str) -> list[TokenSet]:
    """Return the first token of each tile, the same without the first tile, and the last token of each tile."""
    i = np.arange(n)
    found = []
    for tile in (size for size in TILE_SIZES if size < n):
        of = f"{name} of each tile of {tile}"
        found += [(f"the first {of} {{was}}", i % tile == 0),
                  (f"the first {of} after the first {{was}}", (i % tile == 0) & (i > 0)),
                  (f"the last {of} {{was}}", i % tile == tile - 1)]  # fmt: skip
    return found
