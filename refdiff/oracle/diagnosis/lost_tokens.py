"""Find keys that wrong rows of an output seem to lack, and queries that wrong rows of dk and dv seem to lack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.budget import Budget
from refdiff.oracle.budget.statistics import root_mean_square, safe_ratio
from refdiff.oracle.deviations.tiles import TILE_SIZES
from refdiff.oracle.diagnosis.places import correct_rows
from refdiff.oracle.diagnosis.region_format import AXIS_NAMES, find_boxes, format_boxes
from refdiff.oracle.diagnosis.targets import WRONG_LIMITS, Target
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.outputs import read_output
from refdiff.oracle.inputs.sequences import Inputs, Numpy, select
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import AttentionOperands, attention_operands, use_explicit_mask
from refdiff.oracle.truth.backward import backward
from refdiff.oracle.truth.forward import apply_gate, differences, normalize_and_scale, out_shape

MAX_SCORES = 2**22
"""The most scores that are computed at a time."""
KEY_GRADIENTS = ("dk", "dv")
"""The gradients whose rows are sums over queries."""
TokenSet = tuple[str, Numpy]
"""A set of tokens, in words and as a mask."""


def find_lost_keys(spec: Spec, target: Target) -> tuple[str, ...]:
    """Say which keys the wrong rows of a dense output lack, or see after their own, if this explains the error.

    Recomputes a sample of the wrong rows with each range of keys and each edge of tiles hidden.
    """
    inputs, allowed = target.inputs, target.allowed
    if allowed is None or kind_of(inputs) != "dense" or (S := inputs["k"].shape[2]) < 2:
        return ()
    written = np.any(target.actual != 0, axis=-1)  # a row of zeros tells nothing about keys
    wrong = ~correct_rows(target.actual, allowed) & np.all(target.compared, axis=-1) & written
    if not wrong.any():
        return ()
    alone, every = use_explicit_mask(spec, inputs)
    T, s, visible = inputs["q"].shape[2], np.arange(S), np.broadcast_to(every["mask"], (*wrong.shape, S))
    lost, edges = token_ranges(S, "key"), tile_edges(S, "key")
    off = []
    for b, h, t in (chosen := _sample_rows(wrong)):
        own, see = t if spec.causal == "top_left" else t + S - T, visible[b, h, t]
        seen = [(f"{which} not seen", see & ~some) for which, some in lost]
        seen += [(said, see | some) for said, some in _later_key_sets(own, s)]
        seen += [("a query's own key was not seen", see & (s != own))]
        seen += [(f"{which} not seen", see & ~some) for which, some in edges]
        seen += [(f"{which} not seen, but a query's own", see & (~some | (s == own))) for which, some in edges]
        out = _attend_to_sets(alone, every, (b, h, t), np.stack([some for _, some in seen]))
        off.append(safe_ratio(root_mean_square(target.actual[b, h, t] - out), np.full(len(seen), target.rows[b, h, t])))
    at = tuple(chosen.T)
    before = safe_ratio(root_mean_square(target.actual[at] - target.expected[at]), target.rows[at])
    return _explain([said for said, _ in seen], np.stack(off, axis=1), before, wrong, list("bht"))


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


def find_lost_queries(budget: Budget, name: str, actual: Numpy, dout: Any) -> tuple[str, ...]:
    """Say which queries the gradient of dense keys or values lacks, if this explains its error.

    Equation:
        dk_s = Σ_t dk_{s,t}, with dk_{s,t} the gradient from query t alone, or from block t of more than
        `LostTokenLimits.short` queries
    """
    inputs = as_float64(budget.spec, budget.inputs)
    if name not in KEY_GRADIENTS or kind_of(inputs) != "dense" or (T := inputs["q"].shape[2]) < 2:
        return ()
    b = budget.tensors[name]
    wrong = ~correct_rows(actual, b)
    if not np.any(actual[wrong]):  # no wrong rows, or only zeros, which tell nothing
        return ()
    at = tuple(_sample_rows(wrong).T)
    alone, every = use_explicit_mask(budget.spec, inputs)
    g = round_to(read_output(dout, "dout").astype(np.float64), budget.recipe.storage)
    block, terms = _next_power_of_two(T / THRESHOLDS.lost_tokens.short), []
    for queries in (slice(start, start + block) for start in range(0, T, block)):
        part = select(every, slice(None), queries, slice(None))
        terms.append(backward(alone, part, g[:, :, queries], ops_for())[name[1:]][at])
    sets = [*token_ranges(T, "query"), *tile_edges(T, "query")]
    sets = [(which, some) for which, some in sets if np.array_equal(some, np.repeat(some[::block], block)[:T])]
    lost = np.tensordot(np.stack([some[::block] for _, some in sets]).astype(np.float64), np.stack(terms), 1)
    missing, size = np.sum(terms, axis=0) - actual[at], b.rows[at]
    off, before = safe_ratio(root_mean_square(lost - missing), size), safe_ratio(root_mean_square(missing), size)
    return _explain([f"{which} not seen" for which, _ in sets], off, before, wrong, b.axes.split())


def _sample_rows(wrong: Numpy) -> Numpy:
    """Return the indices of some wrong rows, evenly spread over all of them: (rows, axes)."""
    places = np.argwhere(wrong)
    sample: Numpy = places[np.unique(np.linspace(0, len(places) - 1, THRESHOLDS.lost_tokens.rows).astype(int))]
    return sample


def _explain(said: Sequence[str], off: Numpy, before: Numpy, wrong: Numpy, axes: Sequence[str]) -> tuple[str, ...]:
    """Describe the first set of tokens whose error is about the smallest; nothing if it is not far below `before`.

    Args:
        said: the sets in words, the simplest first.
        off: the error of each row over its budget if the set is lost: (sets, rows).
        before: the same without any loss: (rows,).
        wrong: the mask of all wrong rows, of which those in `off` are a sample.
        axes: the letters of the axes of `wrong`.
    """
    off = np.nan_to_num(off, nan=np.inf)
    total = root_mean_square(off)
    likely = int(np.flatnonzero(total <= max(1.0, THRESHOLDS.lost_tokens.tie * float(total.min())))[0])
    if total[likely] * THRESHOLDS.better_ratio > root_mean_square(before) or off[likely].max() > WRONG_LIMITS.row:
        return ()
    every = np.ones_like(wrong)
    place = format_boxes(find_boxes(wrong, every), every, [AXIS_NAMES[a] for a in axes], "every head")
    return (f"it is as if {said[likely]} in {place or f'{wrong.sum()} of {wrong.size} rows'}",)


def token_ranges(n: int, name: str) -> list[TokenSet]:
    """Return ranges of n tokens, the simplest first: suffixes, prefixes, single tokens, tiles, others."""
    limits = THRESHOLDS.lost_tokens
    edges = range(0, n, _next_power_of_two(n / limits.edges))
    several = {"key": "keys", "query": "queries"}[name]
    at = [a for a in edges if a and a % limits.tile == 0]
    found = [(a, n) for a in at] + [(0, b) for b in at]
    at_edges = (0, limits.singles_tile - 1)
    found += [(a, a + 1) for a in range(n) if n <= limits.singles or a % limits.singles_tile in at_edges]
    found += [(a, a + tile) for tile in TILE_SIZES for a in edges if a % tile == 0 and a + tile <= n]
    found += [(a, b) for a in edges for b in (*edges, n) if b > a]
    if n <= limits.singles:
        found += [(a, n) for a in range(n)] + [(0, b) for b in range(1, n)]
    if n <= limits.short:
        found += [(a, a + length) for length in range(2, limits.short_range + 1) for a in range(n - length)]
    i, said = np.arange(n), {}
    for a, b in dict.fromkeys(found):
        if b - a == 1:
            said[a, b] = f"{name} {a} was"
        elif b - a < n:
            said[a, b] = f"{several} from {a} on were" if b == n else f"{several} {a} to {b - 1} were"
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
        found += [(f"the first {of} was", i % tile == 0),
                  (f"the first {of} after the first was", (i % tile == 0) & (i > 0)),
                  (f"the last {of} was", i % tile == tile - 1)]  # fmt: skip
    return found


def _later_key_sets(own: int, s: Numpy) -> list[TokenSet]:
    """Return sets of keys after a query's own: one, as many as a tile has, the rest of the query's tile."""
    after = s - own
    return [
        ("the key after a query's own was seen", after == 1),
        *((f"the {n} keys after a query's own were seen", (after > 0) & (after <= n)) for n in TILE_SIZES),
        *((f"every key of the tile of {n} that has a query's own was seen", (after > 0) & (s // n == own // n))
          for n in TILE_SIZES),
    ]  # fmt: skip
