"""Run a learner's function on the inputs of an exercise, compare, locate the error and name the mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refdiff import oracle
from refdiff.exercises import attention, text, tokens
from refdiff.exercises.exercise import Case, Exercise
from refdiff.messages import did_you_mean

EXERCISES = {e.name: e for e in (*tokens.EXERCISES, *attention.EXERCISES, *text.EXERCISES)}
"""By name, in the order of the notebooks."""
TOLERANCE = 1e-9
"""Of the largest number of a row: float64 leaves about 1e-15, and the smallest catalogued mistake changes 1e-6."""

Floats = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Feedback:
    """What `check` found. It is true where the function is correct, and prints as its message.

    Attributes:
        exercise: the name of the exercise.
        correct: whether every result is that of refdiff.
        message: what is wrong, where, and the name of the mistake if it is known.
        mistake: the name alone, or None.
    """

    exercise: str
    correct: bool
    message: str
    mistake: str | None = None

    def __bool__(self) -> bool:
        return self.correct

    def __repr__(self) -> str:
        return f"{self.exercise}: {self.message}"


def names() -> list[str]:
    """Return the names of all exercises, in the order of the notebooks."""
    return list(EXERCISES)


def signature(name: str) -> str:
    """Return what the function of an exercise is called with, the shapes of its arguments and its result.

    Raises:
        KeyError: no exercise has that name.
    """
    return _exercise(name).signature


def check(name: str, function: Callable[..., Any]) -> Feedback:
    """Call `function` on the inputs of an exercise and compare it with refdiff's own function, in float64.

    A wrong result is located, and named where it is a mistake that the exercise or the oracle's catalogue knows.

    Raises:
        KeyError: no exercise has that name.
    """
    exercise = _exercise(name)
    results, wrong = [], None
    for case in exercise.cases():
        given = copy.deepcopy(case.args)
        try:
            with np.errstate(all="ignore"):  # an overflow is compared, and named
                result = function(*given)
        except Exception as error:
            shapes = ", ".join(_described(x) for x in case.args)
            text = f"raised {type(error).__name__}: {error}\n  called as {exercise.signature}\n  with {shapes}"
            return Feedback(name, False, text)
        if any(not np.array_equal(a, b) for a, b in zip(_leaves(given), _leaves(case.args), strict=True)):
            return Feedback(name, False, "it writes to its arguments: work on a copy")
        results.append(result)
        wrong = wrong or _difference(exercise, result, case)
    if wrong is None:
        return Feedback(name, True, f"correct, on {len(results)} inputs")
    mistake = _mistake(exercise, results)
    return Feedback(name, False, wrong + (f"\n  the mistake: {mistake}" if mistake else ""), mistake)


def _exercise(name: str) -> Exercise:
    if name not in EXERCISES:
        hint = did_you_mean(name, EXERCISES, "", f"there are {', '.join(EXERCISES)}", show=str, most=3)
        raise KeyError(f"no exercise is called {name!r}; {hint}")
    return EXERCISES[name]


def _leaves(result: Any, *, several: bool = True) -> list[Floats]:
    """The arrays of a result, or of arguments, in order; unless it has `several`, a list is one array."""
    parts: Sequence[Any] = result if several and isinstance(result, tuple | list) else (result,)
    return [np.asarray(part, dtype=np.float64) for part in parts if part is not None]


def _described(x: Any) -> str:
    return f"an array of shape {x.shape}" if isinstance(x, np.ndarray) and x.ndim else f"{float(x):g}"


def _difference(exercise: Exercise, result: Any, case: Case) -> str | None:
    """Say where a result differs from the truth, or None where it does not."""
    truth = exercise.truth(*case.args)
    expected = _leaves(truth)
    try:
        actual = _leaves(result, several=isinstance(truth, tuple | list))
    except (TypeError, ValueError):
        return f"the result is {type(result).__name__}, expected numbers\n  called as {exercise.signature}"
    if len(actual) != len(expected):
        return f"{len(actual)} arrays, expected {len(expected)}\n  called as {exercise.signature}"
    for number, (a, b) in enumerate(zip(actual, expected, strict=True), 1):
        which = f"result {number} of {len(expected)}: " if len(expected) > 1 else ""
        if a.shape != b.shape:
            return f"{which}shape {a.shape}, expected {b.shape} {case.what}"
        row = np.abs(np.where(np.isfinite(b), b, 0.0)).max(axis=-1, keepdims=True) if b.ndim else np.abs(b)
        with np.errstate(invalid="ignore"):
            off = ~((a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= TOLERANCE * row))
        if off.any():
            return f"{which}wrong {case.what}: {_located(a, b, off)}"
    return None


def _located(a: Floats, b: Floats, off: Any) -> str:
    """How many numbers are wrong, along which axes they are confined, and the first of them."""
    if a.ndim == 0:
        return f"{float(a):.6g}, expected {float(b):.6g}"
    first = tuple(int(i) for i in np.argwhere(off)[0])
    confined = []
    for axis, size in enumerate(off.shape):
        at = np.flatnonzero(off.any(axis=tuple(i for i in range(off.ndim) if i != axis)))
        if len(at) <= size // 2:
            confined.append(f"index {', '.join(map(str, at))} of axis {axis}")
    where = f", all at {' and '.join(confined)}" if confined else ""
    return (
        f"{int(off.sum())} of {off.size} numbers{where}\n"
        f"  the first is [{', '.join(map(str, first))}]: {float(a[first]):.6g}, expected {float(b[first]):.6g}"
    )


def _mistake(exercise: Exercise, results: Sequence[Any]) -> str | None:
    """The name of a mistake that gives these results: of the exercise's own, or of the oracle's catalogue."""
    cases = exercise.cases()
    for what, wrong in exercise.mistakes.items():
        with np.errstate(all="ignore"):
            twin = replace(exercise, truth=wrong)
            if all(_difference(twin, result, case) is None for result, case in zip(results, cases, strict=True)):
                return what
    for result, case in zip(results, cases, strict=True):
        if case.spec is None or case.inputs is None:
            continue
        out = np.asarray(result, dtype=np.float64)
        if out.shape != np.shape(exercise.truth(*case.args)) or not np.isfinite(out).all():
            continue
        ranking = oracle.diagnose(case.heads(out), case.spec, case.inputs, recipe="float32", max_deviations=1)
        if ranking.status == "unique":
            deviation = ranking.candidates[0].deviations[0]
            return f"{deviation.name} ({deviation.what.rstrip('.')})"
    return None
