"""Mistakes in one place: a lost key, a swapped row, a wrong number. Everything else of the result is right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refdiff.oracle import Spec
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.truth.attention_operands import attention_mask

Numpy = np.ndarray[Any, Any]
Random = np.random.Generator


def last_row_loses_the_first_key(rng: Random, see: Numpy) -> None:
    """The last query of one head does not see key 0."""
    see[:, rng.integers(see.shape[1]), -1, 0] = False


def one_row_loses_its_own_key(rng: Random, see: Numpy) -> None:
    """One query does not see its own token."""
    _, h, T, S = see.shape
    t = int(rng.integers(1, T))
    see[:, rng.integers(h), t, t + S - T] = False


def eight_rows_lose_eight_keys(rng: Random, see: Numpy) -> None:
    """One head misses a tile of eight keys in eight rows."""
    head, s = int(rng.integers(see.shape[1])), int(rng.integers(see.shape[3] - 16))
    see[:, head, -8:, s : s + 8] = False


def every_32nd_row_sees_a_future_key(rng: Random, see: Numpy) -> None:
    """Every 32nd row sees one key more: the causal mask is off by one at the edge of a tile."""
    T, S = see.shape[2:]
    rows = np.arange(31 - T % 2, T - 1, 32)
    see[:, :, rows, rows + S - T + 1] = True


KEYS: tuple[Callable[[Random, Numpy], None], ...] = (
    last_row_loses_the_first_key,
    one_row_loses_its_own_key,
    eight_rows_lose_eight_keys,
    every_32nd_row_sees_a_future_key,
)
"""Each changes which keys queries see: (B, h, T, S)."""


def with_other_keys(
    change: Callable[[Random, Numpy], None], rng: Random, spec: Spec, inputs: Inputs
) -> tuple[Spec, Inputs]:
    """Return the problem in which some queries see other keys."""
    B, T, S = inputs["q"].shape[0], inputs["q"].shape[2], inputs["k"].shape[2]
    see = np.broadcast_to(attention_mask(spec, inputs), (B, spec.heads, T, S)).copy()
    change(rng, see)
    return spec.replace(causal="none", window=None), {**inputs, "mask": see}


def _row(rng: Random, x: Numpy) -> tuple[int, ...]:
    return tuple(int(rng.integers(n)) for n in x.shape[:-1])


def _two_rows(rng: Random, x: Numpy) -> tuple[Any, Any]:
    (b, h, _), t = _row(rng, x), int(rng.integers(x.shape[2] - 1))
    return (b, h, slice(t, t + 2)), x[b, h, t : t + 2][::-1]


def _row_of_next_head(rng: Random, x: Numpy) -> tuple[Any, Any]:
    b, h, t = _row(rng, x)
    return (b, h, t), x[b, (h + 1) % x.shape[1], t]


def _number(by: float, rng: Random, x: Numpy) -> tuple[Any, Any]:
    """One that is no smaller than usual in its row."""
    row = _row(rng, x)
    size = np.abs(x[row])
    at = (*row, int(rng.choice(np.flatnonzero(size >= np.median(size)))))
    return at, by * x[at]


PLACES: dict[str, Callable[[Random, Numpy], tuple[Any, Any]]] = {
    "two_rows_swapped": _two_rows,
    "a_row_of_another_head": _row_of_next_head,
    "a_row_not_written": lambda rng, x: (_row(rng, x), 0.0),
    "a_row_too_large_by_a_tenth": lambda rng, x: (at := _row(rng, x), 1.1 * x[at]),
    "last_numbers_of_a_row_not_written": lambda rng, x: ((*_row(rng, x), slice(-2, None)), 0.0),
    "element_times_1_5": partial(_number, 1.5),
    "element_times_1_01": partial(_number, 1.01),
    "element_times_1_004": partial(_number, 1.004),
    "element_times_minus_1": partial(_number, -1.0),
    "one_nan": partial(_number, np.nan),
}
"""By name: a place in a tensor, of which the last axis is a row, and the wrong numbers that stand there."""


def with_a_wrong_place(name: str, rng: Random, x: Numpy) -> Numpy:
    """Return the tensor with one of `PLACES` wrong."""
    wrong = x.copy()
    at, value = PLACES[name](rng, x)
    wrong[at] = value
    return wrong
