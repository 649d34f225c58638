"""Mistakes in one place: a lost key, a swapped row, a wrong number. Everything else of the result is right.

`KEYS` are other problems, in which some query sees a key too few or too many: output, gradients and log-sum-exps follow
from them. `PLACES` are wrong numbers in a tensor, of which the last axis is a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.oracle import Spec
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.truth.attention_operands import attention_mask

Numpy = np.ndarray[Any, Any]
Random = np.random.Generator
OfKeys = Callable[[Random, Spec, Inputs], tuple[Spec, Inputs]]
OfPlace = Callable[[Random, Numpy], Numpy]


def _unseen(spec: Spec, inputs: Inputs, hidden: Numpy) -> tuple[Spec, Inputs]:
    """The problem with some keys hidden too: `hidden` (h, T, S)."""
    mask = inputs.get("mask", np.ones((1, 1, 1, 1), dtype=np.bool_)) & ~hidden[None]
    return spec, {**inputs, "mask": mask}


def _nothing_hidden(spec: Spec, inputs: Inputs) -> Numpy:
    return np.zeros((spec.heads, inputs["q"].shape[2], inputs["k"].shape[2]), dtype=np.bool_)


def last_row_loses_the_first_key(rng: Random, spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs]:
    """The last query of one head does not see key 0."""
    hidden = _nothing_hidden(spec, inputs)
    hidden[int(rng.integers(spec.heads)), -1, 0] = True
    return _unseen(spec, inputs, hidden)


def one_row_loses_its_own_key(rng: Random, spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs]:
    """One query does not see its own token."""
    hidden = _nothing_hidden(spec, inputs)
    t = int(rng.integers(1, hidden.shape[1]))
    hidden[int(rng.integers(spec.heads)), t, t + hidden.shape[2] - hidden.shape[1]] = True
    return _unseen(spec, inputs, hidden)


def eight_rows_lose_eight_keys(rng: Random, spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs]:
    """One head misses a tile of eight keys in eight rows."""
    hidden = _nothing_hidden(spec, inputs)
    head, t, s = int(rng.integers(spec.heads)), hidden.shape[1] - 8, int(rng.integers(hidden.shape[2] - 16))
    hidden[head, t:, s : s + 8] = True
    return _unseen(spec, inputs, hidden)


def every_32nd_row_sees_a_future_key(rng: Random, spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs]:
    """Every 32nd row sees one key more: the causal mask is off by one at the edge of a tile."""
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    see = np.broadcast_to(attention_mask(spec, inputs), (inputs["q"].shape[0], spec.heads, T, S)).copy()
    rows = np.arange(T) % 32 == 31 - T % 2
    rows[-1] = False
    for t in np.flatnonzero(rows):
        see[:, :, t, t + S - T + 1] = True
    return spec.replace(causal="none", window=None), {**inputs, "mask": see}


def _place(rng: Random, x: Numpy) -> tuple[int, ...]:
    return tuple(int(rng.integers(n)) for n in x.shape[:-1])


def _large(rng: Random, x: Numpy) -> tuple[int, ...]:
    """A number that is no smaller than usual in its row."""
    row = _place(rng, x)
    size = np.abs(x[row])
    return (*row, int(rng.choice(np.flatnonzero(size >= np.median(size)))))


def _changed(x: Numpy, at: Any, value: Any) -> Numpy:
    wrong = x.copy()
    wrong[at] = value
    return wrong


def two_rows_swapped(rng: Random, x: Numpy) -> Numpy:
    """Two neighboring rows of one head stand in each other's place."""
    b, h, _ = _place(rng, x)
    t = int(rng.integers(x.shape[2] - 1))
    return _changed(x, (b, h, slice(t, t + 2)), x[b, h, t : t + 2][::-1])


def a_row_of_another_head(rng: Random, x: Numpy) -> Numpy:
    """One row is that of the next head."""
    b, h, t = _place(rng, x)
    return _changed(x, (b, h, t), x[b, (h + 1) % x.shape[1], t])


def a_row_not_written(rng: Random, x: Numpy) -> Numpy:
    """One row is zero."""
    return _changed(x, _place(rng, x), 0.0)


def a_row_too_large_by_a_tenth(rng: Random, x: Numpy) -> Numpy:
    """One row is 1.1 times itself."""
    at = _place(rng, x)
    return _changed(x, at, 1.1 * x[at])


def last_numbers_of_a_row_not_written(rng: Random, x: Numpy) -> Numpy:
    """The last two numbers of a row are zero: a width that is not a multiple of a tile."""
    at: tuple[Any, ...] = (*_place(rng, x), slice(-2, None))
    return _changed(x, at, 0.0)


def _element(by: float) -> OfPlace:
    def local(rng: Random, x: Numpy) -> Numpy:
        at = _large(rng, x)
        return _changed(x, at, by * x[at])

    local.__doc__ = f"One number is {by:g} times itself."
    local.__name__ = f"element_times_{by:g}".replace(".", "_").replace("-", "minus_")
    return local


def one_nan(rng: Random, x: Numpy) -> Numpy:
    """One number is NaN."""
    return _changed(x, _large(rng, x), np.nan)


KEYS: tuple[OfKeys, ...] = (
    last_row_loses_the_first_key,
    one_row_loses_its_own_key,
    eight_rows_lose_eight_keys,
    every_32nd_row_sees_a_future_key,
)
PLACES: tuple[OfPlace, ...] = (
    two_rows_swapped,
    a_row_of_another_head,
    a_row_not_written,
    a_row_too_large_by_a_tenth,
    last_numbers_of_a_row_not_written,
    _element(1.5),
    _element(1.01),
    _element(1.004),
    _element(-1.0),
    one_nan,
)
