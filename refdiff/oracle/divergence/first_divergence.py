"""The first point of a run that is not what it should be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.errors import CheckpointError
from refdiff.model.config_checks import PAIRING
from refdiff.oracle.divergence.bias_tests import EPSILON
from refdiff.oracle.divergence.conditions import differences
from refdiff.oracle.divergence.expected_values import Expected, expect
from refdiff.oracle.divergence.explain import explanation
from refdiff.oracle.divergence.layouts import Floats, arranged, axes_of, maps_apart
from refdiff.oracle.divergence.precision import precision_of
from refdiff.oracle.divergence.systematic_error import COMMON, one_way
from refdiff.oracle.divergence.verdict import ROW, Found, allowed_rows, compare
from refdiff.oracle.rounding import FORMATS
from refdiff.oracle.trace.known_points import Flow
from refdiff.oracle.trace.point_names import canonical_names, near_point
from refdiff.oracle.trace.trace import Trace, new_path
from refdiff.oracle.trace.trace_files import Source, read_trace

MODES = ("local", "free")

JUMP = 16.0
"""How many times the relative error may grow from point to point, where nobody can say what rounding does to it."""


@dataclass(frozen=True)
class Stage:
    """One point: "equal", "equal up to" something, "differs", or "missing" in the run under test.

    what: an arrangement that was undone, what it is equal up to, or how it differs. ratio: its worst row's error, in
    units of what is allowed; row, error and size: where that is, and its root mean squares of error and right value.
    unseen: how far from 1 a factor on the whole point may be that rounding explains.
    """

    path: str
    status: str
    what: str = ""
    ratio: float = 0.0
    row: tuple[int, ...] = ()
    error: float = 0.0
    size: float = 0.0
    unseen: float = 0.0


@dataclass(frozen=True)
class Divergence:
    """What `first_divergence` found: `path` is the first point that is not right, None where all are.

    mode: "local" or "free", or "recorded" where the run could not be repeated and was compared with what the
    reference's file holds. precision: the type that the run was taken to compute in. stages: every point of the
    reference in order. unknown: names of the run under test that are no point. apart: in which ways the two recordings
    are not of the same run, as of other tokens.
    """

    path: str | None
    mode: str
    precision: str
    stages: tuple[Stage, ...]
    unknown: tuple[str, ...]
    apart: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True where something diverges."""
        return self.path is not None

    @property
    def first(self) -> Stage | None:
        """The stage of `path`."""
        return next((s for s in self.stages if s.path == self.path), None)

    def __str__(self) -> str:
        from refdiff.oracle.divergence.report import lines

        return "\n".join(lines(self))

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        from refdiff.oracle.divergence.report import as_dict

        return as_dict(self)


def first_divergence(
    mine: Source,
    ref: Source,
    *,
    mode: str = "local",
    aliases: str | Mapping[str, str] = "auto",
    precision: str = "auto",
    model: Any = None,
) -> Divergence:
    """Find the first point of the run `mine` that is not what it should be.

    A row is wrong if it is off by more than rounding explains. So is what every row would allow, but adds up over all:
    a factor or a constant (`one_way`), a bias, an ε, or a factor on scores that are not given (`patterns`).

    Args:
        mine, ref: a `Trace`, a dict of arrays, a file or a folder (`read_trace`); `ref` is of this package.
        mode: "local": each point is computed in float64 from the points before it in `mine`, so that an error belongs
            to the point that made it. "free": from the inputs of the run, so that errors add up.
        aliases: "auto" takes the names of transformers, unilm, timm, vLLM and llama.cpp; "none" only those of
            `refdiff.oracle.trace.known_points`; or a dict, your name → the point's, beside "auto".
        precision: what the run computes in, a key of `rounding.FORMATS`; "auto": as its arrays' types and values say.
        model: the model of `ref`, where its file names none that is here.

    Raises:
        ValueError: a trace is empty, nothing in `mine` is a point of `ref`, an alias leads to none, an argument is none
            of those above.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, but must be one of {', '.join(MODES)}")
    if precision not in ("auto", *FORMATS):
        raise ValueError(f"precision is {precision!r}, but must be auto or one of {', '.join(FORMATS)}")
    if isinstance(aliases, str) and aliases not in ("auto", "none"):
        raise ValueError(f'aliases is {aliases!r}, but must be "auto", "none", or a dict of your names to points')
    with _named(mine, ref):
        reference, given = read_trace(ref, model=model), read_trace(mine)
        for trace, whose in ((given, "under test"), (reference, "of the reference")):
            if not trace:
                raise ValueError(f"the trace {whose} is empty: it has no array of any point")
        apart, reference = differences(given, reference), _complete(reference)
        names = canonical_names(given, reference, aliases)
        points = maps_apart({path: given[name] for name, path in names.items()}, reference, _interleaved(reference))
        known = {path: points[path] for path in reference if path in points}
        if isinstance(aliases, Mapping):
            for own in aliases.keys() & given.keys():
                if own not in names or (names[own] in points and names[own] not in reference):
                    raise ValueError(_no_target(own, aliases[own], reference))
        if not known:
            raise ValueError(
                f"none of the names in the trace is a point of the reference: it has {_some(given)}, the reference "
                f"{_some(reference)}{_near(given, reference)}"
            )
        precision = precision_of(known) if precision == "auto" else precision
        used = {name for name, path in names.items() if path in known or not _is_point(path, points)}
        unknown = tuple(name for name in given if name not in used)
        return replace(_judge(known, reference, mode, precision, unknown), apart=apart)


@contextlib.contextmanager
def _named(*sources: Source) -> Iterator[None]:
    """Say in an error which files it is about."""
    try:
        yield
    except CheckpointError:  # which does
        raise
    except ValueError as error:
        files = dict.fromkeys(str(source) for source in sources if isinstance(source, str | os.PathLike))
        raise (ValueError(f"{', '.join(files)}: {error}") if files else error) from None


def _no_target(own: str, target: str, reference: Mapping[str, Any]) -> str:
    hint = near_point(str(target), reference) or ":"
    return f"aliases: {own!r} is {target!r}, which is no point of the reference{hint} it has {_some(reference)}"


def _near(given: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """The first name that is nearly a point's."""
    hints = ((name, near_point(name, reference)) for name in list(given)[:20])
    return next((f"; {name!r}{hint}" for name, hint in hints if hint), "")


def _complete(reference: Trace) -> Trace:
    """The reference with every point that there is, in float64; as it is where it cannot be run again."""
    if reference.run is None:
        return reference
    points: dict[str, NDArray[Any]] = {}

    def keep(path: str, value: Any, **_: Any) -> Any:
        points[new_path(path, points)] = np.array(value, dtype=np.float64)
        return value

    reference.run(keep, maps=True)
    return replace(reference, points=points)


def _is_point(path: str, points: Mapping[str, Any]) -> bool:
    """Whether a path was left as it was, and not taken apart."""
    return path in points


def _some(names: Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (f", … ({len(listed)})" if len(listed) > 4 else "")


def _interleaved(reference: Trace) -> bool:
    """Whether heads 2i, 2i + 1 are a pair."""
    if "spec" in reference.about:
        return bool(reference.about["spec"]["pairing"] == "interleaved")
    return PAIRING.get(reference.about.get("config", {}).get("wiring", "hf")) == "interleaved"


def _judge(
    known: dict[str, NDArray[Any]], reference: Trace, mode: str, precision: str, unknown: tuple[str, ...]
) -> Divergence:
    # what is computed here is in float64 itself, and what is 0 by right may hold a rounding of what was taken away
    unit, tiny = max(FORMATS[precision].u, 2.0**-50), max(FORMATS[precision].tiny, FORMATS["float32"].tiny)
    laid = {path: arranged(array, path, reference) for path, array in known.items()}
    fitting: dict[str, Floats] = {path: array for path, (array, _) in laid.items() if array is not None}
    if reference.run is None:
        expected, mode = _recorded(fitting, reference, unit, tiny), "recorded"
    else:
        expected = expect(
            reference.run, fitting, unit, tiny, local=mode == "local",
            axes=lambda path: axes_of(path, reference).names, padding=lambda path, x: _padding(path, x, reference),
        )  # fmt: skip
    _hide_padding(expected, reference)
    common = COMMON.get(precision, 1.0)
    stages = [_stage(path, laid, expected, reference, unit, tiny, common) for path in reference]
    bad = next((s.path for s in stages if s.status in ("differs", "equal up to") and not _harmless(s)), None)
    return Divergence(bad, mode, precision, tuple(stages), unknown)


def _padding(path: str, value: Floats, reference: Trace) -> NDArray[np.bool_] | None:
    """What stands at padding: nobody uses it, and transformers' own attentions differ there."""
    mask = reference.inputs.get("attention_mask")
    if mask is None or np.ndim(mask) != 2 or np.all(mask):
        return None
    axes = axes_of(path, reference)
    place = next((axes.names.index(n) for n in "TS" if n in axes.names), None)
    if axes.names[:1] != "B" or place is None or place >= value.ndim:
        return None
    padding = np.asarray(mask)[:, -value.shape[place] :] == 0
    if padding.shape != (value.shape[0], value.shape[place]):
        return None
    shape = [1] * value.ndim
    shape[0], shape[place] = padding.shape
    return np.broadcast_to(padding.reshape(shape), value.shape)


def _hide_padding(expected: Expected, reference: Trace) -> None:
    for path, value in expected.values.items():
        padding = _padding(path, value, reference)
        if padding is not None:
            expected.hidden[path] = expected.hidden[path] | padding if path in expected.hidden else padding


def _harmless(stage: Stage) -> bool:
    """Nothing is computed from a log-sum-exp, so its base is a matter of taste."""
    return "the base of the logarithm" in stage.what


def _stage(
    path: str, laid: Mapping[str, Any], expected: Expected, reference: Trace, unit: float, tiny: float, common: float
) -> Stage:
    if path not in laid or path not in expected.values:
        return Stage(path, "missing")
    array, how = laid[path]
    if array is None:
        return Stage(path, "differs", how, np.inf)
    right, hidden, growth = expected.values[path], expected.hidden.get(path), expected.growth.get(path, 0.0)
    found = compare(array, right, expected.spread[path], unit, hidden, growth)
    numbers = (found.ratio, found.worst, found.error, found.size)
    if not found.ok:
        said = explanation(path, array, expected, reference, unit)
        return Stage(path, "equal up to" if said else "differs", said or _difference(found), *numbers)
    allowed = allowed_rows(right, expected.spread[path], unit, hidden, growth)
    unseen, tilt, along = _least(right, allowed, hidden), None, None
    if path in expected.draws:
        names = axes_of(path, reference).names
        axis = next((names.index(n) for n in "TS" if n in names), 0)
        tilt = one_way(
            array, right, allowed, expected.draws[path],
            hidden=hidden, axis=axis, unit=unit, tiny=tiny, growth=growth, common=common,
        )  # fmt: skip
    if path in expected.patterns:
        with np.errstate(invalid="ignore"):
            along = expected.patterns[path].judge(array - right, {EPSILON: expected.epsilon.get(path, 0.0)}, common)
    if along is not None and along.kind == "columns" and tilt is not None and tilt.ratio > 1:
        along = None  # a constant that is the same for all columns
    worst = max((x for x in (tilt, along) if x is not None), key=lambda x: x.ratio, default=None)
    if worst is not None and worst.ratio > 1:
        least = unseen if tilt is None else tilt.limit
        return Stage(path, "equal up to", f"equal up to {worst}", worst.ratio, (), found.error, found.size, least)
    unseen = unseen if tilt is None else min(unseen, tilt.limit)
    return Stage(path, "equal", f"lies as ({', '.join(how)})" if how else "", *numbers, unseen)


def _least(right: Floats, allowed: Floats, hidden: Any) -> float:
    """The smallest share of itself by which some row may be off."""
    counted = np.isfinite(right) if hidden is None else np.isfinite(right) & ~hidden
    rows = right if right.ndim else right[None]
    size = np.sqrt(np.mean(np.where(counted, rows, 0.0) ** 2, axis=-1)) if rows.size else np.zeros(0)
    return float(np.min(ROW * allowed / np.where(size > 0, size, np.nan), initial=np.inf, where=size > 0))


def _difference(found: Found) -> str:
    if np.isinf(found.ratio):
        return f"{found.error:g} stands where {found.size:g} should"
    return f"off by {found.error:.2g} where it should be {found.size:.2g} (root mean squares of the worst row)"


def _recorded(given: Mapping[str, Floats], reference: Trace, unit: float, tiny: float) -> Expected:
    """Without the model: what the file holds; a point may be `JUMP` times as far off as any it comes from."""
    expected, flow = Expected(), Flow(reference)
    levels: dict[str, float] = {}
    for path, array in reference.items():
        wide = array.astype(np.float64)
        size = _rms(wide)
        known = [levels[p] for p in flow.parents(path) if p in levels]  # a file may list a point before its parents
        level = max(known, default=2 * unit)
        expected.values[path] = wide
        expected.spread[path] = np.full(wide.shape[:-1], (JUMP / ROW * level * size) ** 2 + tiny**2)
        if path in given and size:
            off = _rms(given[path] - np.where(np.isfinite(wide), wide, 0.0)) / size
            level = off if level < off <= JUMP * level else level
        levels[path] = level
    return expected


def _rms(x: Floats) -> float:
    finite = x[np.isfinite(x)]
    return float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
