"""Two fields of the spec that are wrong together: another choice, or another number, of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation, Problem, output
from refdiff.oracle.deviations.listed import deviations, kind_of
from refdiff.oracle.diagnosis.fits import COARSE, LIMITS, smallest
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Target, judged, left
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.validation import CHOICES
from refdiff.oracle.thresholds import THRESHOLDS

FIRST, PAIRS, TURNS = 4, 3, 8
"""So many fields are tried as the first, so many pairs as the answer, and so often are their numbers fitted in turn."""
LAYERS = 64
CHOICE = "another choice"

Problems = tuple[Problem | None, ...]
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
    targets = parts.small
    start: Problems = tuple(Problem(spec, t.inputs) for t in targets)
    fields = list(_fields(spec, kind_of(targets[0].inputs)))
    alone = sorted((_best(f, start, targets) for f in fields), key=lambda c: c.left)
    pairs = []
    for first in alone[:FIRST]:
        there = _with(first.change, start)
        pairs += [(first, _best(f, there, targets)) for f in fields if f.name != first.field.name]
    for first, second in sorted(pairs, key=lambda pair: pair[1].left)[:PAIRS]:
        if 1 - second.left < THRESHOLDS.explained:
            break
        both = _in_turn(first, second, start, targets)
        whole = [(_with(both[1].change, _with(both[0].change, (Problem(spec, t.inputs),)))[0], t) for t in parts.whole]
        if all(problem is not None and judged(problem, t)[0] for problem, t in whole) and whole[0][0] is not None:
            share = {c.field.name: 1 - c.left for c in alone}
            return _text(spec, whole[0][0].spec, sorted(both, key=lambda c: -share[c.field.name]), share)
    return None


def _text(spec: Spec, changed: Spec, both: Sequence[Changed], share: dict[str, float]) -> str:
    values = {n: x for n, x in changed.to_dict().items() if x != getattr(spec, n)}
    names = dict.fromkeys(n for c in both for n in c.field.name.split(", "))
    fields = ", ".join(f"{n}={_rounded(values[n])!r}" for n in names if n in values)
    first = both[0].field.name
    alone = max(0.0, share[first])
    return f"several fields of the spec: with {fields} it passes; the best {first} alone explains {alone:.0%}"


def _rounded(x: object) -> object:
    return float(f"{x:.4g}") if isinstance(x, float) else x


def _fields(spec: Spec, kind: str) -> Iterator[Field]:
    """The numbers of a spec that count, and its other choices."""

    def number(name: str, kind: Callable[[float], float] = float) -> Callable[[float], Change]:
        return lambda x: lambda p: _replaced(p, name, kind(x))

    def logarithmic(name: str, low: float, high: float) -> Field:
        grid = tuple(np.linspace(math.log(low), math.log(high), COARSE).tolist())
        return Field(name, number(name, math.exp), grid, smooth=True)

    unit = spec.scale or spec.head_dim**-0.5
    yield logarithmic("scale", unit / 30, unit * 30)
    yield logarithmic("softcap", *LIMITS)
    if spec.norm != "none":
        yield logarithmic("norm_eps", 1e-12, 1.0)
    if spec.rope != "none":
        yield logarithmic("rope_theta", 30.0, 1e8)
    if spec.lambda_init is None and (spec.lambda_form == "exp" or "lambda_init" in spec.out_scale):
        yield Field("layer", number("layer", int), tuple(map(float, range(LAYERS))))
    for d in (*_choices(spec), *deviations(spec, kind)):
        values = d.fields(spec) if d.fields else None
        if values and (d.name == CHOICE or not set(values) <= set(CHOICES)):
            yield Field(", ".join(values), partial(_applied, d))


def _choices(spec: Spec) -> Iterator[Deviation]:
    """Every other word of every field that has some."""
    for name, words in CHOICES.items():
        for word in words:
            if word != getattr(spec, name):
                yield Deviation(CHOICE, "", name, fields=partial(_field, {name: word}))


def _field(values: dict[str, Any], spec: Spec) -> dict[str, Any]:
    return values


def _applied(deviation: Deviation, _: float) -> Change:
    return deviation.apply


def _replaced(problem: Problem, name: str, value: float) -> Problem | None:
    try:
        return replace(problem, spec=problem.spec.replace(**{name: value}))
    except ValueError:
        return None


def _with(change: Change, problems: Problems) -> Problems:
    return tuple(None if p is None else change(p) for p in problems)


def _best(field: Field, start: Problems, targets: Sequence[Target]) -> Changed:
    """The value of a field that leaves least, in targets of which each has its problem."""

    def off(value: float) -> float:
        problems = _with(field.change(value), start)
        return max(left(t, None if p is None else output(p)) for p, t in zip(problems, targets, strict=True))

    if field.smooth:
        return Changed(field, *smallest(off, np.asarray(field.numbers)))
    return min((Changed(field, x, off(x)) for x in field.numbers), key=lambda c: c.left)


def _in_turn(first: Changed, second: Changed, start: Problems, targets: Sequence[Target]) -> tuple[Changed, Changed]:
    """Fit one beside the other, and that beside the first, while it helps."""
    for _ in range(TURNS):
        before = second.left
        first = _best(first.field, _with(second.change, start), targets)
        second = _best(second.field, _with(first.change, start), targets)
        if not second.left < 0.9 * before:
            break
    return first, second
