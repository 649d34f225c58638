"""Find where an output or a gradient is wrong: in one place, in a few, where it is NaN, and where it is unwritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.budget import Budget
from refdiff.oracle.budget.statistics import (
    LIMITS,
    RowBudget,
    element_allowance,
    errors,
    kind_mismatch,
    root_mean_square,
    safe_ratio,
    slope,
    statistics,
)
from refdiff.oracle.diagnosis.region_format import (
    AXIS_NAMES,
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
from refdiff.oracle.inputs.sequences import Inputs, Numpy, sequences
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import attention_mask, head_indices
from refdiff.oracle.truth.forward import out_shape, project

REST_IN_BUDGET = "everything else is within budget"


@dataclass(frozen=True)
class ErrorPlaces:
    """The places of an error, one line of text each.

    not_finite: whether NaN or ∞ are among the error.
    local: whether everything outside a few places with a shape is correct.
    """

    lines: tuple[str, ...]
    not_finite: bool
    local: bool = False


@dataclass(frozen=True)
class Rows:
    """An output or a gradient with its budget. Packed sequences are unpacked into a padded batch.

    keys: the number of keys that each row of an output sees; 2 for the rows of a gradient.
    real: the rows that are not padding.
    second: by the letter of an axis, the heads that only second maps use.
    right_lse: whether the log-sum-exps of a wrong output are correct: scores, mask and positions are correct then.
    """

    actual: Numpy
    budget: RowBudget
    keys: Numpy
    real: Numpy
    second: Mapping[str, Numpy]
    right_lse: bool = False

    @staticmethod
    def of(actual: Numpy, budget: Budget, name: str = "out") -> Rows:
        """Combine an output, or the gradient called `name`, with the budget of its inputs."""
        b, inputs = budget.tensors[name], budget.inputs
        keys = _count_keys(budget.spec, as_float64(budget.spec, inputs)) if name == "out" else np.full(b.rows.shape, 2)
        real, axes, second = np.ones(b.rows.shape, dtype=np.bool_), b.axes.split(), _second_map_heads(budget.spec)
        if "cu_seqlens_q" not in inputs or axes[0] != "b":
            return Rows(actual, b, keys, real, second)
        along = "t" if "t" in axes else "s"
        starts = np.asarray(inputs["cu_seqlens_k" if along == "s" and "cu_seqlens_k" in inputs else "cu_seqlens_q"])
        axis = axes.index(along)
        actual, expected, rows, doubtful, keys, real = (
            _unpack(x, starts, axis) for x in (actual, b.expected, b.rows, b.doubtful, keys, real)
        )
        apart = replace(b, expected=expected, rows=rows, doubtful=doubtful, factor=None)
        return Rows(actual, apart, keys, real, second)

    @property
    def stored(self) -> Numpy:
        """The truth, rounded to the storage type."""
        return round_to(self.budget.expected, self.budget.storage)

    @property
    def nonzero(self) -> Numpy:
        """The rows in which zeros would fail. In others, as in dq of a query with one key, any factor passes."""
        size = root_mean_square(np.where(np.isfinite(self.budget.expected), self.budget.expected, 0.0))
        found: Numpy = size > LIMITS.row * self.budget.rows
        return found

    def make_place(self, some: Numpy, counted: Numpy, columns: Numpy | None = None) -> Place:
        """Describe some of the `counted` rows, and `columns` of them."""
        names = [AXIS_NAMES[a] for a in self.budget.axes.split()]
        found = find_boxes(some, counted)
        words = format_boxes(found, counted, names)
        cut = split_boxes(some, found)
        few = 1 < len(cut) <= THRESHOLDS.max_boxes
        parts = tuple(self._make_piece(box, some, counted) for box in cut) if few else ()
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
        """Describe the rows of one box whose axes all have a pattern."""
        of = {a: (box[n], counted_indices(box, counted, n)) for n, a in enumerate(self.budget.axes.split())}
        part = {a: (inside, whole) for a, (inside, whole) in of.items() if len(inside) < len(whole)}
        words = [f"{format_indices(AXIS_NAMES[a], *x)}{self._map_note(a, x[0])}" for a, x in reversed(part.items())]
        inside = np.zeros_like(some)
        inside[np.ix_(*box)] = True
        return Place(" of ".join(words), True, part, some & inside)

    def _map_note(self, axis: str, found: Numpy) -> str:
        second = axis in self.second and np.array_equal(found, self.second[axis])
        return " (the second map of every pair)" if second else ""


@dataclass(frozen=True)
class Place:
    """Some rows, or columns of them.

    text, rows: the rows in words, "" if they are all, and as a mask.
    shaped: whether they are a few boxes.
    part: if they are one box, its indices and all indices, for each axis that it does not cover.
    pieces, count: the boxes without gaps that they consist of, if these are few, and their number.
    columns: the columns, if not all.
    """

    text: str
    shaped: bool
    part: dict[str, tuple[Numpy, Numpy]]
    rows: Numpy
    pieces: tuple[Place, ...] = ()
    columns: Numpy | None = None
    count: int = 1


def locate_errors(actual: Numpy, budget: Budget, name: str = "out", *, right_lse: bool = False) -> ErrorPlaces:
    """Say where an output that fails is wrong, unless the error is everywhere.

    Args:
        name: the name of the gradient, if it is one.
        right_lse: as in `Rows`.
    """
    rows = replace(Rows.of(actual, budget, name), right_lse=right_lse)
    other = kind_mismatch(rows.actual, rows.budget)
    if not other.any():
        place = _find_place(rows)
        return ErrorPlaces(tuple(_describe_finite(rows, place, "it is")), False, _is_local(place))
    lines = _describe_nonfinite(rows, other)
    rest = replace(rows, actual=np.where(other, rows.stored, rows.actual))
    place, wrong = _find_place(rest), int(_row_errors(rest.actual, rest.budget)[0].sum())
    if not (more := _describe_finite(rest, place, "besides, it is")):
        more = [f"besides, {wrong} of {rows.real.sum()} rows are wrong" if wrong else REST_IN_BUDGET]
    return ErrorPlaces((*lines, *more), True, not wrong or _is_local(place))


def _is_local(place: Place | None) -> bool:
    """Whether there is a place, and it is a few boxes of rows, or columns, rather than scattered rows."""
    return place is not None and (place.shaped or place.columns is not None)


def correct_rows(actual: Numpy, b: RowBudget) -> Numpy:
    """Return the mask of rows that pass on their own: limits of rows and elements, and the same NaN and ∞."""
    return ~(_row_errors(actual, b)[0] | kind_mismatch(actual, b).any(axis=-1))


def _describe_finite(rows: Rows, place: Place | None, prefix: str) -> list[str]:
    """Describe where finite numbers are wrong, and where they are exactly zero."""
    lines = []
    zeros = _find_zeros(rows)
    if place is not None:
        # where the numbers belong explains more than the shape of the place
        why = _describe_misplaced(rows, place)
        if not why:
            each = [(p.text, _describe_misplaced(rows, p) or _describe_factor(rows, p)) for p in place.pieces]
            factor = _describe_factor(rows, place) or "; ".join(f"in {text} {said}" for text, said in each if said)
            why = ", and ".join(filter(None, (_guess_cause(place, rows), factor)))
        lines.append(f"{prefix} wrong only in {place.text}; {REST_IN_BUDGET}{why and f': {why}'}")
    if zeros is not None:
        same = place is not None and place.text == zeros.text
        where = "there" if same else f"in {zeros.text}" if zeros.text else "everywhere"
        looks = ": it looks like memory never written to, or every key masked" if zeros.shaped else ""
        lines.append(f"{'it is' if same else prefix} exactly zero {where}, where the truth is not{looks}")
    return lines


def _row_errors(actual: Numpy, b: RowBudget) -> tuple[Numpy, Numpy, Numpy]:
    """Return the rows that fail on their own, and the error over the budget of each row and of each number."""
    error = np.abs(errors(actual, b))
    ratio = safe_ratio(root_mean_square(error), b.rows)
    y = np.abs(np.where(np.isfinite(b.expected), b.expected, 0.0))
    numbers = safe_ratio(error, element_allowance(b, b.rows, y))
    return (ratio > LIMITS.row) | np.any(numbers > LIMITS.element, axis=-1), ratio, numbers


def _find_place(rows: Rows) -> Place | None:
    """Return the place outside of which the output is correct; None if it is most of the output."""
    wrong, ratio, numbers = _row_errors(rows.actual, rows.budget)
    if not wrong.any():
        return None
    telling = rows.real & (rows.keys >= 2)  # with one key or none, wrong scores change nothing
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
    # scattered rows may be the peaks of an error that is everywhere: each must stand out
    size = root_mean_square(ratio[wrong][None])[0] if place.shaped else np.min(ratio[wrong])
    stands_out = size >= THRESHOLDS.place_contrast * np.max(rest, initial=0.0)
    return place if few and stands_out and _is_within_limits(rest) else None


def _ratios_without(rows: Rows, wrong: Numpy, columns: Numpy) -> tuple[Numpy, Numpy]:
    """Return the error ratios of rows and of numbers after `columns` of the wrong rows are set to the truth.

    The rows' ratios are ∞ if the output fails a statistic even then.
    """
    gone = wrong[..., None] & columns
    rest = np.where(gone, rows.budget.expected, rows.actual)
    _, ratio, numbers = _row_errors(rest, rows.budget)
    if not all(s.holds for s in statistics(rest, rows.budget)):
        return np.full_like(ratio, np.inf), numbers
    left = 1 - columns.mean()  # root mean square over the columns that are left
    return np.where(wrong & (left > 0), ratio / np.sqrt(left or 1), ratio), numbers


def _is_within_limits(ratio: Numpy) -> bool:
    """Whether the error ratios of rows are within the limits of a correct kernel."""
    bulk = LIMITS.bulk + (LIMITS.row - LIMITS.bulk) / np.sqrt(max(1, ratio.size))
    return ratio.size > 0 and float(ratio.max()) <= LIMITS.row and float(root_mean_square(ratio[None])[0]) <= bulk


def _find_columns(wrong: Numpy, numbers: Numpy) -> Numpy | None:
    """Return the columns in which the wrong rows have wrong numbers; None if they are none or most."""
    off = np.any(numbers[wrong] > LIMITS.element, axis=0)
    where = np.flatnonzero(off)
    if not len(where):
        return None
    stretch = slice(int(where[0]), int(where[-1]) + 1)
    if len(where) >= THRESHOLDS.filled_share * (stretch.stop - stretch.start):
        off[stretch] = True  # some numbers of a wrong column may be correct by chance
    return off if off.sum() <= THRESHOLDS.local_share * len(off) else None


def _find_zeros(rows: Rows) -> Place | None:
    """Return the rows that are exactly zero and should not be, or else a range of such columns; None without any."""
    zero, here = rows.actual == 0, np.any(rows.stored != 0, axis=-1) & rows.real
    whole = np.all(zero, axis=-1) & here
    if whole.any():
        return rows.make_place(whole, here)
    lost = zero & (_row_errors(rows.actual, rows.budget)[2] > LIMITS.element)
    some = lost.sum(axis=-1) >= 2
    if not some.any():
        return None
    columns = lost[some].mean(axis=0) >= THRESHOLDS.filled_share
    where = np.flatnonzero(columns)
    # single numbers may be zero by chance
    many = len(where) >= 2 and len(where) * some.sum() >= (2 if columns[-1] else THRESHOLDS.min_block)
    return rows.make_place(some, here, columns) if many and where[-1] - where[0] + 1 == len(where) else None


def _describe_nonfinite(rows: Rows, other: Numpy) -> list[str]:
    """Describe where the output is NaN or infinite and the truth is not, and the reverse."""
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
    """Name the usual cause of an error in a place of this shape; "" if there is none."""
    if place.columns is not None:
        if len(place.columns) > 1 and place.columns[-1] == rows.actual.shape[-1] - 1:
            return "it looks like a last, partial block of columns"
        return "it looks like a block of columns" if len(place.columns) >= THRESHOLDS.min_block else ""
    if "t" in place.part:
        return _guess_token_cause(*place.part["t"], alone=len(place.part) == 1, right_lse=rows.right_lse)
    return {
        "b": "it looks like strides, lengths or offsets of the batch",
        "h": "it looks like how heads are counted",
        "bh": "it looks like one block of the grid",
    }.get("".join(place.part), "")


def _guess_token_cause(found: Numpy, whole: Numpy, *, alone: bool, right_lse: bool) -> str:
    """Name the usual cause of an error in some tokens of all heads and sequences (`alone`), or of some of them."""
    first, last = int(found[0]), int(found[-1])
    if (period := find_period(found, whole)) is not None:
        m, low, high = period
        edge = "the first row" if high == 0 else "the last row" if low == m - 1 else "the same row"
        return f"it looks like {edge if low == high else 'a part'} of each block of {m}"
    if len(found) < 2 or last - first + 1 != len(found):
        return ""
    to_the_end = last == whole[-1]
    if to_the_end and len(found) < (first & -first):  # fewer than the largest power of two that divides the first
        other = alone and not right_lse
        return "it looks like a last, partial block of rows" + (", or a mask or positions" if other else "")
    if alone:
        cause = "tiles or a split of keys" if right_lse else "a mask, a window or positions"
        return f"it looks like {cause}, from token {first} on" if to_the_end else ""
    is_block = len(found) >= THRESHOLDS.min_block
    return "it looks like a tile not written, or written too early or late" if is_block else ""


def _describe_misplaced(rows: Rows, place: Place) -> str:
    """Say that a box of the output holds numbers that belong elsewhere, or its rows in another order; else ""."""
    if not place.part or place.columns is not None:
        return ""
    axes, shape = rows.budget.axes.split(), rows.budget.rows.shape
    box = tuple(place.part[a][0] if a in place.part else np.arange(n) for a, n in zip(axes, shape, strict=True))
    if source := _find_source(rows, place, box):
        return f"it holds what belongs in {source}, as after a wrong offset"
    for n, a in enumerate(axes):
        if a in place.part and 2 <= len(box[n]) <= THRESHOLDS.max_reordered and (order := _find_order(rows, box, n)):
            name = AXIS_NAMES[a]
            return f"{name}s {join_words(box[n].tolist())} hold what belongs in {name}s {join_words(order)}"
    return ""


def _find_order(rows: Rows, box: Box, n: int) -> list[int]:
    """Return the permutation of a box's indices along axis n that the output holds; [] if it holds none."""

    def at(i: int) -> Box:
        return tuple(np.asarray([i]) if m == n else some for m, some in enumerate(box))

    order = [next((int(j) for j in box[n] if j != i and _matches(rows, at(int(i)), at(int(j)))), -1) for i in box[n]]
    return order if sorted(order) == box[n].tolist() else []


def _find_source(rows: Rows, place: Place, box: Box) -> str:
    """Return where the numbers of a box of the output belong: "head 2", "tokens 64 to 95"; "" if nowhere.

    The box is shifted along one axis at a time.
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
    """Say by which single factor the numbers of a place differ from the truth; "" if there is none."""
    b = rows.budget
    x, y, off = rows.actual[place.rows], b.expected[place.rows], b.rows[place.rows]
    if place.columns is not None:
        x, y = x[:, place.columns], y[:, place.columns]
    factor = slope(x, y) if x.size > 1 else 0.0
    if not factor or abs(factor - 1) < THRESHOLDS.same_factor:
        return ""
    error = safe_ratio(root_mean_square(x - factor * y), off * max(1.0, abs(factor)))
    return f"it is {factor:.4g} times the truth there" if np.max(error) <= LIMITS.row else ""


def _matches(rows: Rows, box: Box, source: Box) -> bool:
    """Whether a box of the output equals the truth of the box `source`, and the truth of the two boxes differs."""
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
        np.max(furthest(rows.actual[at])) <= LIMITS.row
        and np.median(furthest(b.expected[at])) > THRESHOLDS.place_separation
    )


def _second_map_heads(spec: Spec) -> dict[str, Numpy]:
    """Return the heads of q ("H") and of k ("K") that only second maps use."""
    w = head_indices(spec)
    found = {"H": np.setdiff1d(w.q2, w.q1), "K": np.setdiff1d(w.k2, w.k1)}
    return {axis: heads for axis, heads in found.items() if len(heads)}


def _unpack(x: Numpy, starts: Numpy, axis: int) -> Numpy:
    """Unpack sequences, packed along `axis`, into a batch along axis 0, padded with zeros."""
    longest = int(np.max(np.diff(starts), initial=0))
    made = np.zeros((len(starts) - 1, *x.shape[1:axis], longest, *x.shape[axis + 1 :]), dtype=x.dtype)
    to, of = np.moveaxis(made, axis, 1), np.moveaxis(x, axis, 1)
    for n in range(len(starts) - 1):
        to[n, : starts[n + 1] - starts[n]] = of[0, starts[n] : starts[n + 1]]
    return made


def _count_keys(spec: Spec, inputs: Inputs) -> Numpy:
    """Count the keys that each row of the output sees."""
    core = project(spec, inputs, ops_for())
    found = np.zeros(out_shape(spec, core)[:3], dtype=np.int64)
    for part in sequences(core):
        found[part.batch, :, part.queries] = attention_mask(spec, part.inputs).sum(axis=-1)
    return found.max(axis=1, initial=0) if is_layer(inputs) else found
