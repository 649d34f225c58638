"""Two fields of the spec that are wrong together: another choice, or another number, of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation, deviated, output_with
from refdiff.oracle.deviations.listed import deviations
from refdiff.oracle.diagnosis.fits import numbers, smallest
from refdiff.oracle.diagnosis.ranking import percent
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Numpy, Target, judged, left
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.validation import CHOICES
from refdiff.oracle.thresholds import THRESHOLDS

FIRST, PAIRS, TURNS = 4, 3, 8
"""So many fields are tried as the first, so many pairs as the answer, and so often are their numbers fitted in turn."""
LAYERS = 64


class Field(NamedTuple):
    """A field, or some that change together: what changes it, of each number of a grid; between them too if smooth."""

    name: str
    at: Callable[[float], Deviation]
    grid: Numpy
    smooth: bool = False


class Changed(NamedTuple):
    """A field at its best value, and which share of the squared error is left."""

    field: Field
    deviation: Deviation
    left: float


def two_fields(spec: Spec, parts: Parts) -> str | None:
    """Say with which two fields of the spec outputs pass, first of that which explains more; None with no two.

    Each field takes its best value alone, each other one the best beside it, and the two are fitted in turn.
    """
    targets = parts.small
    fields = list(_fields(spec, kind_of(targets[0].inputs)))
    alone = sorted((_best(spec, f, (), targets) for f in fields), key=lambda c: c.left)
    pairs = [
        (first, _best(spec, f, (first.deviation,), targets))
        for first in alone[:FIRST]
        for f in fields
        if f.name != first.field.name
    ]
    for first, second in sorted(pairs, key=lambda pair: pair[1].left)[:PAIRS]:
        if 1 - second.left < THRESHOLDS.explained:
            break
        first, second = _fit_alternately(spec, first, second, targets)
        problems = [deviated(spec, t.inputs, (first.deviation, second.deviation)) for t in parts.whole]
        if all(judged(p, t)[0] for p, t in zip(problems, parts.whole, strict=True)) and problems[0] is not None:
            share = {c.field.name: 1 - c.left for c in reversed(alone)}  # of each field the best choice, which is first
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
    return f"several fields of the spec: with {fields} it passes; the best {first} alone explains {percent(alone)}"


def _fields(spec: Spec, kind: str) -> Iterator[Field]:
    """The numbers of a spec that count, and its other choices."""
    for number in numbers(spec):
        yield Field(number.field, partial(_set, number.field, math.exp), number.grid, smooth=True)
    if spec.lambda_init is None and (spec.lambda_form == "exp" or "lambda_init" in spec.out_scale):
        yield Field("layer", partial(_set, "layer", int), np.arange(LAYERS))
    for name, words in CHOICES.items():
        others = [word for word in words if word != getattr(spec, name)]
        yield Field(name, partial(_set, name, others.__getitem__), np.arange(len(others)))
    for d in deviations(spec, kind):
        values = d.fields(spec) if d.fields else None
        if values and not set(values) <= set(CHOICES):
            yield Field(", ".join(values), lambda _, d=d: d, np.zeros(1))  # type: ignore[misc]


def _set(name: str, value: Callable[[Any], Any], x: float) -> Deviation:
    return Deviation("", "", name, fields=lambda _: {name: value(x)})


def _best(spec: Spec, field: Field, beside: tuple[Deviation, ...], targets: Sequence[Target]) -> Changed:
    """The value of a field, changed beside others, that leaves least."""

    def off(value: float) -> float:
        some = (*beside, field.at(value))
        return max(left(t, output_with(spec, t.inputs, some)) for t in targets)

    if field.smooth:
        best, least = smallest(off, field.grid)
    else:
        least, best = min((off(x), x) for x in field.grid.tolist())
    return Changed(field, field.at(best), least)


def _fit_alternately(spec: Spec, first: Changed, second: Changed, targets: Sequence[Target]) -> tuple[Changed, Changed]:
    """Fit one beside the other, and that beside the first, while it helps."""
    for _ in range(TURNS):
        before = second.left
        first = _best(spec, first.field, (second.deviation,), targets)
        second = _best(spec, second.field, (first.deviation,), targets)
        if not second.left < 0.9 * before:
            break
    return first, second
