"""Run a learner's function on the inputs of an exercise, compare, locate the error and name the mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refdiff import oracle
from refdiff.exercises import attention, text, tokens
from refdiff.exercises.exercise import Exercise, ExerciseCase
from refdiff.messages import did_you_mean

EXERCISES = {e.name: e for e in (*tokens.EXERCISES, *attention.EXERCISES, *text.EXERCISES)}
"""By name, in the order of the notebooks."""
TOLERANCE = 1e-9
"""The accepted error, relative to the largest number of a row: float64 leaves 1e-15, the smallest mistake 1e-6."""

Floats = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Feedback:
    """The result of `check`; true if the function is correct. It prints as the exercise's name and the message.

    Attributes:
        exercise: the name of the exercise.
        correct: whether every result equals refdiff's.
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
    """Return the signature of an exercise's function, with the shapes of its arguments and its result.

    Raises:
        KeyError: no exercise has that name.
    """
    return _exercise(name).signature


def check(name: str, function: Callable[..., Any]) -> Feedback:
    """Call `function` on the inputs of an exercise and compare it with refdiff's own function, in float64.

    The message about a wrong result says where it is wrong. It names the mistake if the exercise or the oracle's
    catalogue knows it.

    Raises:
        KeyError: no exercise has that name.
    """
    exercise = _exercise(name)
    results, wrong = [], None
    for case in exercise.cases():
        given = copy.deepcopy(case.args)
        try:
            with np.errstate(all="ignore"):  # an overflow is compared and reported
                result = function(*given)
        except Exception as error:
            shapes = ", ".join(map(_describe, exercise.arguments, case.args))
            text = f"raised {type(error).__name__}: {error}\n  called as {exercise.signature}\n  with {shapes}"
            return Feedback(name, False, text)
        if result is None:
            return Feedback(name, False, "your function returned None: is a `return` missing?")
        if any(not np.array_equal(a, b) for a, b in zip(_arrays(given), _arrays(case.args), strict=True)):
            return Feedback(name, False, "it writes to its arguments: work on a copy")
        results.append(result)
        wrong = wrong or _find_difference(exercise, result, case)
    if wrong is None:
        return Feedback(name, True, f"correct, on {len(results)} inputs")
    mistake = _find_mistake(exercise, results)
    return Feedback(name, False, wrong + (f"\n  the mistake: {mistake}" if mistake else ""), mistake)


def _exercise(name: str) -> Exercise:
    if name not in EXERCISES:
        hint = did_you_mean(name, EXERCISES, "", f"there are {', '.join(EXERCISES)}", show=str, most=3)
        raise KeyError(f"no exercise is called {name!r}; {hint}")
    return EXERCISES[name]


def _arrays(result: Any, *, several: bool = True) -> list[Floats]:
    """Return the arrays of a result or of arguments; with several=False, a list or tuple counts as one array."""
    parts: Sequence[Any] = result if several and isinstance(result, tuple | list) else (result,)
    return [np.asarray(part, dtype=np.float64) for part in parts if part is not None]


def _describe(name: str, x: Any) -> str:
    return f"{name} {x.shape}" if isinstance(x, np.ndarray) and x.ndim else f"{name} = {float(x):g}"


def _find_difference(exercise: Exercise, result: Any, case: ExerciseCase) -> str | None:
    """Say where a result differs from the truth, or None where it does not."""
    truth = exercise.truth(*case.args)
    expected = _arrays(truth)
    try:
        actual = _arrays(result, several=isinstance(truth, tuple | list))
    except (TypeError, ValueError):
        return f"the result is {type(result).__name__}, expected numbers\n  called as {exercise.signature}"
    if len(actual) != len(expected):
        return f"{len(actual)} arrays, expected {len(expected)}\n  called as {exercise.signature}"
    for number, (a, b) in enumerate(zip(actual, expected, strict=True), 1):
        which = f"result {number} of {len(expected)}: " if len(expected) > 1 else ""
        if a.shape != b.shape:
            return f"{which}shape {a.shape}, expected {b.shape} {case.what}"
        sizes = np.abs(np.where(np.isfinite(b), b, 0.0))
        row = sizes.max(axis=-1, keepdims=True) if b.ndim else sizes
        with np.errstate(invalid="ignore"):
            is_wrong = ~((a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= TOLERANCE * row))
        if is_wrong.any():
            return f"{which}wrong {case.what}: {_locate(a, b, is_wrong)}"
    return None


def _locate(a: Floats, b: Floats, is_wrong: Any) -> str:
    """Say how many numbers are wrong, to which indices of which axes they are confined, and what the first is."""
    if a.ndim == 0:
        return f"{float(a):.6g}, expected {float(b):.6g}"
    first = tuple(int(i) for i in np.argwhere(is_wrong)[0])
    confined = []
    for axis, size in enumerate(is_wrong.shape):
        at = np.flatnonzero(is_wrong.any(axis=tuple(i for i in range(is_wrong.ndim) if i != axis)))
        if len(at) <= size // 2:
            is_range = len(at) > 2 and at[-1] - at[0] == len(at) - 1
            confined.append(f"index {f'{at[0]} to {at[-1]}' if is_range else ', '.join(map(str, at))} of axis {axis}")
    where = f", all at {' and '.join(confined)}" if confined else ""
    return (
        f"{int(is_wrong.sum())} of {is_wrong.size} numbers{where}\n"
        f"  the first is [{', '.join(map(str, first))}]: {float(a[first]):.6g}, expected {float(b[first]):.6g}"
    )


def _find_mistake(exercise: Exercise, results: Sequence[Any]) -> str | None:
    """Return the name of a mistake that gives these results, from the exercise or the oracle's catalogue, or None."""
    cases = exercise.cases()
    for what, wrong in exercise.mistakes.items():
        with np.errstate(all="ignore"):
            mistaken = replace(exercise, truth=wrong)
            if all(
                _find_difference(mistaken, result, case) is None for result, case in zip(results, cases, strict=True)
            ):
                return what
    for result, case in zip(results, cases, strict=True):
        if case.spec is None or case.inputs is None:
            continue
        out = np.asarray(result, dtype=np.float64)
        if out.shape != np.shape(exercise.truth(*case.args)) or not np.isfinite(out).all():
            continue
        ranking = oracle.diagnose(case.heads(out), case.spec, case.inputs, recipe="float32", max_deviations=1)
        if ranking.status == "unique":
            deviation = ranking.findings[0].hypotheses[0]
            return f"{deviation.name} ({deviation.what.rstrip('.')})"
    return None
