"""Where an output is wrong, if that is one place and the rest is right; where it is NaN; where it was not written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.budget import Budget
from refdiff.oracle.budget.statistics import (
    LIMITS,
    RowBudget,
    element_allowance,
    errors,
    kind_mismatch,
    safe_ratio,
    root_mean_square,
    statistics,
)
from refdiff.oracle.diagnosis.region_format import (
    AXIS_NAMES,
    MAX_PLACES,
    Box,
    counted_indices,
    find_boxes,
    find_period,
    format_boxes,
    format_first_boxes,
    format_indices,
    join_words,
    split_boxes,
)
from refdiff.oracle.inputs import is_layer
from refdiff.oracle.inputs.sequences import Inputs, sequences
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import attention_mask, head_indices
from refdiff.oracle.truth.forward import out_shape, project

Numpy = np.ndarray[Any, Any]
REST_IN_BUDGET = "everything else is within budget"
MAX_REORDERED = 16
"""Of more rows it is not asked whether they stand in another order."""


@dataclass(frozen=True)
class ErrorPlaces:
    """What is said of the places of an error, whether NaN and ∞ are among it, and whether it is in one place only."""

    lines: tuple[str, ...]
    not_finite: bool
    local: bool = False


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
    second: Mapping[str, Numpy]

    @staticmethod
    def of(actual: Numpy, known: Budget, name: str = "out") -> Rows:
        """From an output, or the gradient of this name, and the budget of its inputs."""
        b, inputs = known.tensors[name], known.inputs
        keys = _count_keys(known.spec, as_float64(known.spec, inputs)) if name == "out" else np.full(b.rows.shape, 2)
        real, axes, second = np.ones(b.rows.shape, dtype=np.bool_), b.axes.split(), _second_map_heads(known.spec)
        if "cu_seqlens_q" not in inputs or axes[0] != "b":
            return Rows(actual, b, keys, real, second)
        along = "t" if "t" in axes else "s"
        starts = np.asarray(inputs["cu_seqlens_k" if along == "s" and "cu_seqlens_k" in inputs else "cu_seqlens_q"])
        axis = axes.index(along)
        actual, expected, rows, bounds, doubtful, keys, real = (
            _unpack(x, starts, axis) for x in (actual, b.expected, b.rows, b.bounds, b.doubtful, keys, real)
        )
        apart = replace(b, expected=expected, rows=rows, bounds=bounds, doubtful=doubtful, factor=None)
        return Rows(actual, apart, keys, real, second)

    @property
    def stored(self) -> Numpy:
        """The truth as its type holds it."""
        return round_to(self.budget.expected, self.budget.storage)

    @property
    def nonzero(self) -> Numpy:
        """The rows that zeros do not pass in.

        Others, such as dq of a query with one key, are right whatever they are multiplied by: they bound no place.
        """
        size = root_mean_square(np.where(np.isfinite(self.budget.expected), self.budget.expected, 0.0))
        found: Numpy = size > LIMITS.row * self.budget.rows
        return found

    def make_place(self, some: Numpy, counted: Numpy, columns: Numpy | None = None) -> Place:
        """Rows, and columns of them, in words."""
        names = [AXIS_NAMES[a] for a in self.budget.axes.split()]
        found = find_boxes(some, counted)
        words = format_boxes(found, counted, names)
        cut = split_boxes(some, found)
        parts = tuple(self._make_piece(box, some, counted) for box in cut) if 1 < len(cut) <= MAX_PLACES else ()
        if words is not None and len(found) == 1:
            place = replace(self._make_piece(found[0], some, counted), pieces=parts)
        else:
            text = format_first_boxes(cut, counted, names) if words is None else words
            place = Place(text, words is not None, {}, some, parts, count=len(cut))
        if columns is None or columns.all():
            return place
        where = np.flatnonzero(columns)
        word = format_indices("column", where, np.arange(len(columns))) or f"{len(where)} of {len(columns)} columns"
        return replace(place, text=f"{word} of {place.text or 'every row'}", columns=where)

    def _make_piece(self, box: Box, some: Numpy, counted: Numpy) -> Place:
        """The rows of one box, which has a pattern."""
        of = {a: (box[n], counted_indices(box, counted, n)) for n, a in enumerate(self.budget.axes.split())}
        part = {a: (inside, whole) for a, (inside, whole) in of.items() if len(inside) < len(whole)}
        words = [
            f"{format_indices(AXIS_NAMES[a], *found)}{self._second_map_note(a, found[0])}"
            for a, found in reversed(part.items())
        ]
        inside = np.zeros_like(some)
        inside[np.ix_(*box)] = True
        return Place(" of ".join(words), True, part, some & inside)

    def _second_map_note(self, axis: str, found: Numpy) -> str:
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


def locate_errors(actual: Numpy, known: Budget, name: str = "out") -> ErrorPlaces:
    """Say where an output that fails is wrong, if that is one place; of an error that is everywhere nothing is said.

    Args:
        name: of a gradient, if it is one.
    """
    rows = Rows.of(actual, known, name)
    other = kind_mismatch(rows.actual, rows.budget)
    if not other.any():
        place = _find_place(rows)
        return ErrorPlaces(
            tuple(_describe_finite(rows, place, "it is")), False, place is not None and _has_shape(place)
        )
    lines = _describe_nonfinite(rows, other)
    rest = replace(rows, actual=np.where(other, rows.stored, rows.actual))
    place, wrong = _find_place(rest), int(_row_errors(rest.actual, rest.budget)[0].sum())
    if not (more := _describe_finite(rest, place, "besides, it is")):
        more = [f"besides, {wrong} of {rows.real.sum()} rows are wrong" if wrong else REST_IN_BUDGET]
    return ErrorPlaces((*lines, *more), True, not wrong or (place is not None and _has_shape(place)))


def _has_shape(place: Place) -> bool:
    """Whether it is one place that has a shape, or a few: not many scattered rows."""
    return place.shaped or place.columns is not None


def correct_rows(actual: Numpy, b: RowBudget) -> Numpy:
    """The rows that are right by themselves."""
    return ~(_row_errors(actual, b)[0] | kind_mismatch(actual, b).any(axis=-1))


def _describe_finite(rows: Rows, place: Place | None, it_is: str) -> list[str]:
    """What is said of the numbers."""
    lines = []
    zeros = _find_zeros(rows)
    if place is not None:
        # what it holds says more than what the shape of the place looks like
        misplaced = _describe_misplaced(rows, place)
        why = [misplaced] if misplaced else [_guess_cause(place, rows), _describe_factor(rows, place)]
        if not why[-1]:
            each = (
                (piece.text, _describe_misplaced(rows, piece) or _describe_factor(rows, piece))
                for piece in place.pieces
            )
            why[-1] = "; ".join(f"in {text} {said}" for text, said in each if said)
        said = ", and ".join(filter(None, why))
        lines.append(f"{it_is} wrong only in {place.text}; {REST_IN_BUDGET}{said and f': {said}'}")
    if zeros is not None:
        same = place is not None and place.text == zeros.text
        where = "there" if same else f"in {zeros.text}" if zeros.text else "everywhere"
        looks = ": it looks like memory never written to, or every key masked" if zeros.shaped else ""
        lines.append(f"{'it is' if same else it_is} exactly zero {where}, where the truth is not{looks}")
    return lines


def _row_errors(actual: Numpy, b: RowBudget) -> tuple[Numpy, Numpy, Numpy]:
    """Rows that fail by themselves, how far off each row is in its budget, and each number in its own."""
    error = np.abs(errors(actual, b))
    ratio = safe_ratio(root_mean_square(error), b.rows)
    numbers = safe_ratio(error, element_allowance(b, b.rows, np.abs(np.where(np.isfinite(b.expected), b.expected, 0.0))))
    return (ratio > LIMITS.row) | np.any(numbers > LIMITS.element, axis=-1), ratio, numbers


def _find_place(rows: Rows) -> Place | None:
    """The place, or places, outside of which the output is right; None where that is most of the output."""
    wrong, ratio, numbers = _row_errors(rows.actual, rows.budget)
    if not wrong.any():
        return None
    telling = rows.real & (rows.keys >= 2)  # what sees one key or none is right whatever is done to scores or maps
    counted = (telling & rows.nonzero) | wrong
    columns = _find_columns(wrong, numbers)
    if columns is not None:
        rest, rest_of_numbers = _ratios_without(rows, wrong, columns)
        if _is_within_limits(rest[counted]) and np.max(numbers) >= THRESHOLDS.place_contrast * np.max(rest_of_numbers):
            return rows.make_place(wrong, counted, columns)
    place = rows.make_place(wrong, counted)
    few = (wrong & telling).sum() <= THRESHOLDS.local_share * telling.sum()
    few = few and (place.shaped or place.count <= THRESHOLDS.max_places)
    rest, _ = _ratios_without(rows, wrong, np.ones(numbers.shape[-1], dtype=np.bool_))
    rest = rest[counted & ~wrong]
    # rows here and there may be those in which an error that is everywhere is largest: each is to stand out
    size = root_mean_square(ratio[wrong][None])[0] if place.shaped else np.min(ratio[wrong])
    return (
        place if few and size >= THRESHOLDS.place_contrast * np.max(rest, initial=0.0) and _is_within_limits(rest) else None
    )


def _ratios_without(rows: Rows, wrong: Numpy, columns: Numpy) -> tuple[Numpy, Numpy]:
    """How far off the rows are, and each number, where these columns of the wrong rows are right; ∞ if that fails."""
    gone = wrong[..., None] & columns
    rest = np.where(gone, rows.budget.expected, rows.actual)
    _, ratio, numbers = _row_errors(rest, rows.budget)
    if not all(s.holds for s in statistics(rest, rows.budget)):
        return np.full_like(ratio, np.inf), numbers
    left = 1 - columns.mean()  # the mean over a row is one of fewer numbers
    return np.where(wrong & (left > 0), ratio / np.sqrt(left or 1), ratio), numbers


def _is_within_limits(ratio: Numpy) -> bool:
    """Whether rows are as far off as those of right kernels."""
    bulk = LIMITS.bulk + (LIMITS.row - LIMITS.bulk) / np.sqrt(max(1, ratio.size))
    return ratio.size > 0 and float(ratio.max()) <= LIMITS.row and float(root_mean_square(ratio[None])[0]) <= bulk


def _find_columns(wrong: Numpy, numbers: Numpy) -> Numpy | None:
    """The columns of the wrong rows in which numbers are wrong, if they are few."""
    off = np.any(numbers[wrong] > LIMITS.element, axis=0)
    where = np.flatnonzero(off)
    if not len(where):
        return None
    stretch = slice(int(where[0]), int(where[-1]) + 1)
    if len(where) >= THRESHOLDS.filled_share * (stretch.stop - stretch.start):
        off[stretch] = True  # a wrong number may be near the right one
    return off if off.sum() <= THRESHOLDS.local_share * len(off) else None


def _find_zeros(rows: Rows) -> Place | None:
    """The rows that are exactly zero and should not be; or else a stretch of their columns."""
    zero, here = rows.actual == 0, np.any(rows.stored != 0, axis=-1) & rows.real
    whole = np.all(zero, axis=-1) & here
    if whole.any():
        return rows.make_place(whole, here)
    b = rows.budget
    y = np.abs(np.where(np.isfinite(b.expected), b.expected, 0.0))
    lost = zero & (y > LIMITS.element * element_allowance(b, b.rows, y)) & ~b.doubtful[..., None]
    some = lost.sum(axis=-1) >= 2
    if not some.any():
        return None
    columns = lost[some].mean(axis=0) >= THRESHOLDS.filled_share
    where = np.flatnonzero(columns)
    # a few numbers may be zero by chance
    many = len(where) >= 2 and len(where) * some.sum() >= (2 if columns[-1] else THRESHOLDS.min_block)
    return rows.make_place(some, here, columns) if many and where[-1] - where[0] + 1 == len(where) else None


def _describe_nonfinite(rows: Rows, other: Numpy) -> list[str]:
    """Where it is NaN or infinite and the truth is not, and the other way round."""
    lines = []
    finite = np.isfinite(rows.stored)
    for mask in (other & finite, other & ~finite):
        if not mask.any():
            continue
        some = np.any(mask, axis=-1)
        place = rows.make_place(some, rows.real, np.any(mask[some], axis=0)).text or "all rows"
        found, truth, why = _describe_kind(rows.actual[mask]), _describe_kind(rows.stored[mask]), ""
        if not rows.keys[some].any():
            why = ": these rows see no key"
        elif rows.budget.storage == "float16" and truth == "finite" and "infinite" in found:
            why = ": it looks like more than float16 holds"
        lines.append(f"it is {found} in {place}, where the truth is {truth}{why}")
    return lines


def _describe_kind(x: Numpy) -> str:
    kinds = [("NaN", np.isnan(x)), ("infinite", np.isinf(x)), ("finite", np.isfinite(x))]
    return " or ".join(word for word, here in kinds if here.any())


def _guess_cause(place: Place, rows: Rows) -> str:
    """What kernels usually do wrong in a place of that shape; "" where nothing is usual."""
    if place.columns is not None:
        if len(place.columns) > 1 and place.columns[-1] == rows.actual.shape[-1] - 1:
            return "it looks like a last, partial block of columns"
        return "it looks like a block of columns" if len(place.columns) >= THRESHOLDS.min_block else ""
    if "t" in place.part:
        return _guess_token_cause(*place.part["t"], alone=len(place.part) == 1)
    return {
        "b": "it looks like strides, lengths or offsets of the batch",
        "h": "it looks like how heads are counted",
        "bh": "it looks like one block of the grid",
    }.get("".join(place.part), "")


def _guess_token_cause(found: Numpy, whole: Numpy, alone: bool) -> str:
    """The same, where some tokens are wrong: of all heads and sequences (alone), or of some."""
    first, last = int(found[0]), int(found[-1])
    if (period := find_period(found, whole)) is not None and period[0] >= THRESHOLDS.min_block:
        m, low, high = period
        edge = "the first row" if high == 0 else "the last row" if low == m - 1 else "the same row"
        return f"it looks like {edge if low == high else 'a part'} of each block of {m}"
    if len(found) < 2 or last - first + 1 != len(found):
        return ""
    to_the_end = last == whole[-1]
    if to_the_end and len(found) < (first & -first):  # the largest power of two that divides the first
        return "it looks like a last, partial block of rows" + (", or a mask or positions" if alone else "")
    if alone:
        return f"it looks like a mask, a window or positions, from token {first} on" if to_the_end else ""
    return "it looks like a tile not written, or written too early or late" if len(found) >= THRESHOLDS.min_block else ""


def _describe_misplaced(rows: Rows, place: Place) -> str:
    """Say where the truth has the numbers of one box of the output, or that its rows are in another order."""
    if not place.part or place.columns is not None:
        return ""
    axes, shape = rows.budget.axes.split(), rows.budget.rows.shape
    box = tuple(place.part[a][0] if a in place.part else np.arange(n) for a, n in zip(axes, shape, strict=True))
    if source := _find_source(rows, place, box):
        return f"it holds what belongs in {source}, as after a wrong offset"
    for n, a in enumerate(axes):
        if a in place.part and 2 <= len(box[n]) <= MAX_REORDERED and (order := _find_order(rows, box, n)):
            name = AXIS_NAMES[a]
            return f"{name}s {join_words(box[n].tolist())} hold what belongs in {name}s {join_words(order)}"
    return ""


def _find_order(rows: Rows, box: Box, n: int) -> list[int]:
    """Which index of axis n of a box each of its indices holds, if it holds them all; else nothing."""

    def at(i: int) -> Box:
        return tuple(np.asarray([i]) if m == n else some for m, some in enumerate(box))

    order = [next((int(j) for j in box[n] if j != i and _matches(rows, at(int(i)), at(int(j)))), -1) for i in box[n]]
    return order if sorted(order) == box[n].tolist() else []


def _find_source(rows: Rows, place: Place, box: Box) -> str:
    """Say where the truth has the numbers of one box of the output: "head 2", "tokens 64 to 95"; "" if nowhere.

    The box is moved along one axis at a time, by as much as there is room.
    """
    shape = rows.budget.rows.shape
    for n, a in enumerate(rows.budget.axes.split()):
        if a in place.part:
            for by in range(-int(box[n][0]), shape[n] - int(box[n][-1])):
                source = tuple(some + by if m == n else some for m, some in enumerate(box))
                if by and _matches(rows, box, source):
                    return format_indices(AXIS_NAMES[a], source[n], np.arange(shape[n])) or f"other {AXIS_NAMES[a]}s"
    return ""


def _describe_factor(rows: Rows, place: Place) -> str:
    """Say by what factor the numbers of a place differ from the truth, if one factor serves for all of them."""
    b = rows.budget
    x, y, off = rows.actual[place.rows], b.expected[place.rows], b.rows[place.rows]
    if place.columns is not None:
        x, y = x[:, place.columns], y[:, place.columns]
    square = float(np.sum(y * y))
    factor = float(np.sum(x * y)) / square if x.size > 1 and square > 0 else 0.0
    if not factor or abs(factor - 1) < THRESHOLDS.same_factor:
        return ""
    error = safe_ratio(root_mean_square(x - factor * y), off * max(1.0, abs(factor)))
    return f"it is {factor:.4g} times the truth there" if np.max(error) <= LIMITS.row else ""


def _matches(rows: Rows, box: Box, source: Box) -> bool:
    """Whether the output is in a box what the truth is in another, and the truth itself is not."""
    b, at, of = rows.budget, np.ix_(*box), np.ix_(*source)
    known = rows.real[at] & rows.real[of] & ~b.doubtful[of] & (b.rows[of] > 0)
    if not known.any():
        return False
    other, size = b.expected[of], b.rows[of]

    def furthest(x: Numpy) -> Numpy:
        with np.errstate(invalid="ignore", over="ignore"):
            found: Numpy = np.nan_to_num(safe_ratio(root_mean_square(x - other), size)[known], nan=np.inf)
        return found

    return bool(
        np.max(furthest(rows.actual[at])) <= LIMITS.row and np.median(furthest(b.expected[at])) > THRESHOLDS.place_separation
    )


def _second_map_heads(spec: Spec) -> dict[str, Numpy]:
    """Heads of q and of k that are in second maps and in no first one."""
    w = head_indices(spec)
    found = {"H": np.setdiff1d(w.q2, w.q1), "K": np.setdiff1d(w.k2, w.k1)}
    return {axis: heads for axis, heads in found.items() if len(heads)}


def _unpack(x: Numpy, starts: Numpy, axis: int) -> Numpy:
    """Sequences that lie one after another along an axis, one below the other along the first, zeros after them."""
    longest = int(np.max(np.diff(starts), initial=0))
    made = np.zeros((len(starts) - 1, *x.shape[1:axis], longest, *x.shape[axis + 1 :]), dtype=x.dtype)
    to, of = np.moveaxis(made, axis, 1), np.moveaxis(x, axis, 1)
    for n in range(len(starts) - 1):
        to[n, : starts[n + 1] - starts[n]] = of[0, starts[n] : starts[n + 1]]
    return made


def _count_keys(spec: Spec, inputs: Inputs) -> Numpy:
    """How many keys each row sees."""
    core = project(spec, inputs, ops_for())
    found = np.zeros(out_shape(spec, core)[:3], dtype=np.int64)
    for part in sequences(core):
        found[part.batch, :, part.queries] = attention_mask(spec, part.inputs).sum(axis=-1)
    return found.max(axis=1, initial=0) if is_layer(inputs) else found
