"""Two fields of the spec that are wrong together: another choice, or another number, of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation, Problem
from refdiff.oracle.deviations.listed import deviations, kind_of
from refdiff.oracle.diagnosis.fits import numbers, smallest
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Kernel, Target, judged, left, outputs
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.validation import CHOICES
from refdiff.oracle.thresholds import THRESHOLDS

FIRST, PAIRS, TURNS = 4, 3, 8
"""So many fields are tried as the first, so many pairs as the answer, and so often are their numbers fitted in turn."""
LAYERS = 64

Change = Callable[[Problem], Problem | None]


@dataclass(frozen=True)
class Field:
    """A field, or some that change together, and how it is changed: one choice, whole numbers, or a range of numbers.

    numbers: the values on which to look for the best; between them too where `smooth`.
    """

    name: str
    change: Callable[[float], Change]
    numbers: tuple[float, ...] = (0.0,)
    smooth: bool = False


@dataclass(frozen=True)
class Changed:
    """A field with its best value, and which share of the squared error is left."""

    field: Field
    value: float
    left: float

    @property
    def change(self) -> Change:
        """What it makes of a problem."""
        return self.field.change(self.value)


def two_fields(spec: Spec, parts: Parts) -> str | None:
    """Say with which two fields of the spec outputs pass, first of that which explains more; None with no two.

    Each field takes its best value alone, each other one the best beside it, and the two are fitted in turn.
    """
    targets, start = parts.small, partial(Problem, spec)
    fields = list(_fields(spec, kind_of(targets[0].inputs)))
    alone = sorted((_best(f, start, targets) for f in fields), key=lambda c: c.left)
    pairs = [
        (first, _best(f, _changed(start, first.change), targets))
        for first in alone[:FIRST]
        for f in fields
        if f.name != first.field.name
    ]
    for first, second in sorted(pairs, key=lambda pair: pair[1].left)[:PAIRS]:
        if 1 - second.left < THRESHOLDS.explained:
            break
        first, second = _in_turn(first, second, start, targets)
        problems = [_changed(_changed(start, first.change), second.change)(t.inputs) for t in parts.whole]
        if all(judged(p, t)[0] for p, t in zip(problems, parts.whole, strict=True)) and problems[0] is not None:
            share = {c.field.name: 1 - c.left for c in alone}
            both = sorted((first, second), key=lambda c: -share[c.field.name])
            return _text(spec, problems[0].spec, both, share)
    return None


def _text(spec: Spec, changed: Spec, both: Sequence[Changed], share: dict[str, float]) -> str:
    values = {n: x for n, x in changed.to_dict().items() if x != getattr(spec, n)}
    values = {n: float(f"{x:.4g}") if isinstance(x, float) else x for n, x in values.items()}
    names = dict.fromkeys(n for c in both for n in c.field.name.split(", "))
    fields = ", ".join(f"{n}={values[n]!r}" for n in names if n in values)
    first = both[0].field.name
    alone = max(0.0, share[first])
    return f"several fields of the spec: with {fields} it passes; the best {first} alone explains {alone:.0%}"


def _fields(spec: Spec, kind: str) -> Iterator[Field]:
    """The numbers of a spec that count, and its other choices."""
    for number in numbers(spec):
        change = partial(_number, number.field, math.exp)
        yield Field(number.field, change, tuple(number.grid.tolist()), smooth=True)
    if spec.lambda_init is None and (spec.lambda_form == "exp" or "lambda_init" in spec.out_scale):
        yield Field("layer", partial(_number, "layer", int), tuple(map(float, range(LAYERS))))
    for name, words in CHOICES.items():
        for word in words:
            if word != getattr(spec, name):
                yield Field(name, _always(_set(name, word)))
    for d in deviations(spec, kind):
        values = d.fields(spec) if d.fields else None
        if values and not set(values) <= set(CHOICES):
            yield Field(", ".join(values), _always(d.apply))


def _number(name: str, kind: Callable[[float], float], x: float) -> Change:
    return _set(name, kind(x))


def _always(change: Change) -> Callable[[float], Change]:
    return lambda _: change


def _set(name: str, value: Any) -> Change:
    return Deviation("", "", name, fields=lambda _: {name: value}).apply


def _changed(kernel: Kernel, change: Change) -> Kernel:
    def changed(inputs: Inputs) -> Problem | None:
        problem = kernel(inputs)
        return None if problem is None else change(problem)

    return changed


def _best(field: Field, start: Kernel, targets: Sequence[Target]) -> Changed:
    """The value of a field, changed in a kernel, that leaves least."""

    def off(value: float) -> float:
        outs = outputs(_changed(start, field.change(value)), targets)
        return max(left(t, x) for t, x in zip(targets, outs, strict=True))

    if field.smooth:
        return Changed(field, *smallest(off, np.asarray(field.numbers)))
    return min((Changed(field, x, off(x)) for x in field.numbers), key=lambda c: c.left)


def _in_turn(first: Changed, second: Changed, start: Kernel, targets: Sequence[Target]) -> tuple[Changed, Changed]:
    """Fit one beside the other, and that beside the first, while it helps."""
    for _ in range(TURNS):
        before = second.left
        first = _best(first.field, _changed(start, second.change), targets)
        second = _best(second.field, _changed(start, first.change), targets)
        if not second.left < 0.9 * before:
            break
    return first, second
