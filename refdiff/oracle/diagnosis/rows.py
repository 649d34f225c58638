"""Outputs by rows, each sequence by itself, and places of rows and columns in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.budget import Budget
from refdiff.oracle.budget.statistics import RowBudget
from refdiff.oracle.diagnosis.region_format import (
    MOST,
    Box,
    boxes,
    every,
    indices,
    mask_words,
    pieces,
    several_words,
)
from refdiff.oracle.inputs import is_layer
from refdiff.oracle.inputs.sequences import Inputs, sequences
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_mask import attention_mask
from refdiff.oracle.truth.forward import out_shape, project
from refdiff.oracle.truth.head_indices import head_indices

Numpy = np.ndarray[Any, Any]
NAMES = {"b": "sequence", "page": "page", "slot": "slot", "t": "token", "s": "key"} | dict.fromkeys("hHKV", "head")


@dataclass(frozen=True)
class Rows:
    """An output or a gradient and its budget, each sequence by itself.

    keys: how many keys each row of an output sees; 2, which are enough to tell, for a gradient's. real: the rows that
    are no padding of shorter sequences. second: which heads of an axis are those of the second map, where some are.
    """

    actual: Numpy
    budget: RowBudget
    keys: Numpy
    real: Numpy
    second: Mapping[str, Numpy] = field(default_factory=dict)

    @staticmethod
    def of(actual: Numpy, known: Budget, name: str = "out") -> Rows:
        """From an output, or the gradient of this name, and the budget of its inputs."""
        b, inputs = known.tensors[name], known.inputs
        keys = _keys(known.spec, as_float64(known.spec, inputs)) if name == "out" else np.full(b.rows.shape, 2)
        real, axes, second = np.ones(b.rows.shape, dtype=np.bool_), b.axes.split(), _second_maps(known.spec)
        if "cu_seqlens_q" not in inputs or axes[0] != "b":
            return Rows(actual, b, keys, real, second)
        along = "t" if "t" in axes else "s"
        starts = np.asarray(inputs["cu_seqlens_k" if along == "s" and "cu_seqlens_k" in inputs else "cu_seqlens_q"])
        axis = axes.index(along)
        actual, expected, rows, bounds, doubtful, keys, real = (
            _apart(x, starts, axis) for x in (actual, b.expected, b.rows, b.bounds, b.doubtful, keys, real)
        )
        apart = replace(b, expected=expected, rows=rows, bounds=bounds, doubtful=doubtful, factor=None)
        return Rows(actual, apart, keys, real, second)

    @property
    def stored(self) -> Numpy:
        """The truth as its type holds it."""
        return round_to(self.budget.expected, self.budget.storage)

    def place(self, some: Numpy, counted: Numpy, columns: Numpy | None = None) -> Place:
        """Rows, and columns of them, in words."""
        names = [NAMES[a] for a in self.budget.axes.split()]
        found = boxes(some, counted)
        words = mask_words(found, counted, names)
        cut = pieces(some, found)
        parts = tuple(self._piece(box, some, counted) for box in cut) if 1 < len(cut) <= MOST else ()
        if words is not None and len(found) == 1:
            place = replace(self._piece(found[0], some, counted), pieces=parts)
        else:
            text = several_words(cut, counted, names) if words is None else words
            place = Place(text, words is not None, {}, some, parts, count=len(cut))
        if columns is None or columns.all():
            return place
        where = np.flatnonzero(columns)
        word = indices("column", where, np.arange(len(columns))) or f"{len(where)} of {len(columns)} columns"
        return replace(place, text=f"{word} of {place.text or 'every row'}", columns=where)

    def _piece(self, box: Box, some: Numpy, counted: Numpy) -> Place:
        """The rows of one box, which has a pattern."""
        of = {a: (box[n], every(box, counted, n)) for n, a in enumerate(self.budget.axes.split())}
        part = {a: (inside, whole) for a, (inside, whole) in of.items() if len(inside) < len(whole)}
        words = [f"{indices(NAMES[a], *found)}{self._map(a, found[0])}" for a, found in reversed(part.items())]
        inside = np.zeros_like(some)
        inside[np.ix_(*box)] = True
        return Place(" of ".join(words), True, part, some & inside)

    def _map(self, axis: str, found: Numpy) -> str:
        second = axis in self.second and np.array_equal(found, self.second[axis])
        return " (the second map of every pair)" if second else ""


@dataclass(frozen=True)
class Place:
    """Some rows in words, "" where they are all, and whether they have a shape; and columns of them, if not all.

    part: where they are one box, the indices that it takes of an axis, and all there are, of each axis that it divides.
    rows: the same as a mask. pieces: the stretches that they are made of, where these are few. count: of them.
    """

    text: str
    shaped: bool
    part: dict[str, tuple[Numpy, Numpy]]
    rows: Numpy
    pieces: tuple[Place, ...] = ()
    columns: Numpy | None = None
    count: int = 1

    @property
    def is_one(self) -> bool:
        """Whether it is one place that has a shape, or a few: not many scattered rows."""
        return self.shaped or self.columns is not None


def _second_maps(spec: Spec) -> dict[str, Numpy]:
    """Heads of q and of k that are in second maps and in no first one."""
    w = head_indices(spec)
    found = {"H": np.setdiff1d(w.q2, w.q1), "K": np.setdiff1d(w.k2, w.k1)}
    return {axis: heads for axis, heads in found.items() if len(heads)}


def _apart(x: Numpy, starts: Numpy, axis: int) -> Numpy:
    """Sequences that lie one after another along an axis, one below the other along the first, zeros after them."""
    longest = int(np.max(np.diff(starts), initial=0))
    made = np.zeros((len(starts) - 1, *x.shape[1:axis], longest, *x.shape[axis + 1 :]), dtype=x.dtype)
    to, of = np.moveaxis(made, axis, 1), np.moveaxis(x, axis, 1)
    for n in range(len(starts) - 1):
        to[n, : starts[n + 1] - starts[n]] = of[0, starts[n] : starts[n + 1]]
    return made


def _keys(spec: Spec, inputs: Inputs) -> Numpy:
    """How many keys each row sees."""
    core = project(spec, inputs, ops_for()) if is_layer(inputs) else inputs
    found = np.zeros(out_shape(spec, core)[:3], dtype=np.int64)
    for part in sequences(core):
        found[part.batch, :, part.queries] = attention_mask(spec, part.inputs).sum(axis=-1)
    return found.max(axis=1, initial=0) if is_layer(inputs) else found
