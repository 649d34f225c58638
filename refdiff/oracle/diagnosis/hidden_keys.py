"""Keys that the wrong rows of an output seem not to have seen, or to have seen though they come later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.statistics import over, root_mean_square
from refdiff.oracle.deviations.tiles import SIZES
from refdiff.oracle.diagnosis.places import right_rows
from refdiff.oracle.diagnosis.region_format import NAMES, boxes, mask_words
from refdiff.oracle.diagnosis.variants import LOOSE, Numpy, Target
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import AttentionOperands, attention_operands
from refdiff.oracle.truth.forward import has_plain_norm, normed, out_factor

SAMPLE = 12
"""So many of the wrong rows are looked at."""
MOST = 128
"""Of so many keys every interval is tried, of more only single keys and intervals between edges of tiles."""
ABOUT_AS_GOOD = 1.5
"""Of intervals whose errors are no further apart than this, or within rounding, the simplest is named."""


@dataclass(frozen=True)
class Row:
    """One wrong row: e^z, (v, 1) of each key, and whether it is seen; its own key; the numbers that follow."""

    weights: tuple[Numpy, Numpy]
    values: Numpy
    seen: Numpy
    own: int
    lambda_full: float
    factor: float
    actual: Numpy
    unit: float


def hidden_keys(spec: Spec, target: Target) -> tuple[str, ...]:
    """Say which keys the wrong rows of a dense output lack, or see beyond their own, if these explain the error.

    Equation:
        of keys M a row is s · Norm(Σ_M e^{z₁} v / Σ_M e^{z₁} − λ Σ_M e^{z₂} v / Σ_M e^{z₂}); of all intervals, and of
        the first or last keys of tiles, those are left out of M that leave the least error in a dozen of the wrong rows
    """
    inputs, allowed = target.inputs, target.allowed
    if allowed is None or kind_of(inputs) != "dense" or inputs["k"].shape[2] < 2:
        return ()
    if spec.gate != "none" or not (has_plain_norm(spec) or spec.norm == "none"):
        return ()
    if spec.sinks:  # which are one more key here
        return ()
    written = np.any(target.actual != 0, axis=-1)  # a row of zeros says nothing of keys
    wrong = ~right_rows(target.actual, allowed) & np.all(target.compared, axis=-1) & written
    if not wrong.any():
        return ()
    places = np.argwhere(wrong)
    chosen = places[np.unique(np.linspace(0, len(places) - 1, SAMPLE).astype(int))]
    operands = attention_operands(spec, inputs, ops_for())
    rows = [_row(spec, target, operands, *map(int, at)) for at in chosen]
    S = inputs["k"].shape[2]
    lost, edges = intervals(S), edge_sets(S)
    words = [f"{_words(a, b, S)} not seen" for a, b in lost]
    words += ["the key after a query's own was seen", *(f"the {n} keys after a query's own were seen" for n in SIZES)]
    words += [f"every key of the tile of {n} that has a query's own was seen" for n in SIZES]
    words += ["a query's own key was not seen"]
    words += [
        f"the {which.format('key')} was not seen{but}" for which, _ in edges for but in ("", ", but a query's own")
    ]
    found = [
        np.concatenate([_without(spec, inputs, row, lost), _with_others(spec, inputs, row, edges)]) for row in rows
    ]
    off = np.asarray([_off(row, some) for row, some in zip(rows, found, strict=True)])
    before = np.asarray([_off(row, _of_keys(spec, inputs, row, row.seen[None])) for row in rows])
    total = root_mean_square(off.T)
    likely = int(np.flatnonzero(total <= max(1.0, ABOUT_AS_GOOD * float(total.min())))[0])
    if total[likely] * THRESHOLDS.as_good > root_mean_square(before.T)[0] or off[:, likely].max() > LOOSE.row:
        return ()
    everywhere = np.ones_like(wrong)
    place = mask_words(boxes(wrong, everywhere), everywhere, [NAMES[a] for a in "bht"], "every head")
    return (f"it is as if {words[likely]} in {place or f'{wrong.sum()} of {wrong.size} rows'}",)


def _row(spec: Spec, target: Target, s: AttentionOperands, b: int, h: int, t: int) -> Row:
    (B, H, T), S = target.rows.shape, s.k1.shape[2]

    def at(x: Any, last: int) -> Numpy:
        found: Numpy = np.broadcast_to(x, (B, H, T, last))[b, h, t]
        return found

    scale = 1 / math.sqrt(s.q1.shape[-1])
    bias = 0.0 if s.bias is None else at(s.bias, S)
    z = [k[b, h] @ q[b, h, t] * scale + bias for q, k in ((s.q1, s.k1), (s.q2, s.k2))]
    seen = at(s.see, S)
    top = [np.max(x[seen], initial=-np.inf) for x in z]
    first, second = (np.exp(np.minimum(x - (m if np.isfinite(m) else 0.0), 700.0)) for x, m in zip(z, top, strict=True))
    size = float(target.rows[b, h, t])
    own = t if spec.causal == "top_left" else t + S - T
    factor = at(out_factor(spec, target.inputs, ops_for()), 1)[0]
    known = (float(at(s.lambda_full, 1)[0]), float(factor))
    values = np.concatenate([s.v[b, h], np.ones((S, 1))], axis=-1)
    return Row((first, second), values, seen, own, *known, target.actual[b, h, t], size)


def edge_sets(n: int) -> list[tuple[str, Numpy]]:
    """The first of n keys in each tile, with those of the first tile and without, and the last: in words, and which."""
    found = []
    for tile in (size for size in SIZES if size < n):
        found += [
            (f"first {{}} of each tile of {tile}", np.arange(0, n, tile)),
            (f"first {{}} of each tile of {tile} after the first", np.arange(tile, n, tile)),
            (f"last {{}} of each tile of {tile}", np.arange(tile - 1, n, tile)),
        ]
    return found


def intervals(S: int) -> list[tuple[int, int]]:
    """The intervals of keys that may be lost, the simplest first: from an edge on, up to one, a key, a tile, others."""
    edges = list(range(0, S, max(8, 2 ** math.ceil(math.log2(S / MOST))) if S > MOST else 1))
    simple = [(a, S) for a in edges if a and a % 8 == 0] + [(0, b) for b in edges if b and b % 8 == 0]
    simple += [(a, a + 1) for a in range(S)]
    simple += [(a, a + n) for n in SIZES for a in range(0, S - n + 1, n)]
    every = [(a, b) for a in edges for b in (*edges, S) if b > a and b - a < S]
    return list(dict.fromkeys((*simple, *every)))


def _words(a: int, b: int, S: int) -> str:
    if b - a == 1:
        return f"key {a} was"
    return f"keys from {a} on were" if b == S else f"keys {a} to {b - 1} were"


def _without(spec: Spec, inputs: Any, row: Row, edges: Sequence[tuple[int, int]]) -> Numpy:
    """The row without each interval of keys, from sums up to every key."""
    a, b = np.asarray(edges).T
    sums = []
    for weights in row.weights:
        up_to = np.cumsum((weights * row.seen)[:, None] * row.values, axis=0)
        up_to = np.concatenate([np.zeros_like(up_to[:1]), up_to])
        sums.append(up_to[-1] - (up_to[b] - up_to[a]))
    return _finished(spec, inputs, row, sums)


def _of_keys(spec: Spec, inputs: Any, row: Row, seen: Numpy) -> Numpy:
    """The row of each set of keys, (n, S)."""
    return _finished(spec, inputs, row, [(weights * seen) @ row.values for weights in row.weights])


def _with_others(spec: Spec, inputs: Any, row: Row, edges: Sequence[tuple[str, Numpy]]) -> Numpy:
    """The row with some keys after its own seen too: one, as many as a tile has, those of its own tile.

    Then without its own key, and without each edge of tiles, its own key among them and not.
    """
    s = np.arange(len(row.seen))
    after, own = s - row.own, s == row.own
    some = [row.seen | ((after > 0) & (after <= n)) for n in (1, *SIZES)]
    some += [row.seen | ((after > 0) & (s // n == row.own // n)) for n in SIZES]
    some.append(row.seen & ~own)
    for _, keys in edges:
        kept = row.seen & ~np.isin(s, keys)
        some += [kept, kept | (row.seen & own)]
    return _of_keys(spec, inputs, row, np.stack(some))


def _finished(spec: Spec, inputs: Any, row: Row, sums: Sequence[Numpy]) -> Numpy:
    """Rows, (n, e), from Σ e^z v and Σ e^z of both maps, (n, e + 1); zeros where no key is left."""
    o1, o2 = (_divided(x, 1e-13 * float(np.max(x[:, -1], initial=0.0))) for x in sums)
    heads = (o1 - row.lambda_full * o2)[None, None]
    finished: Numpy = row.factor * normed(spec, heads, inputs, ops_for())[0, 0]
    return finished


def _divided(x: Numpy, least: float) -> Numpy:
    """(n, e): the sums of values by those of weights, 0 where these are not more than rounding."""
    left = x[:, -1:] > least
    return np.where(left, x[:, :-1] / np.where(left, x[:, -1:], 1.0), 0.0)


def _off(row: Row, found: Numpy) -> Numpy:
    return over(root_mean_square(row.actual - found), np.full(len(found), row.unit))
