"""Find the first point of a run that is wrong."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.errors import CheckpointError
from refdiff.model.variants import VARIANTS
from refdiff.oracle.divergence.expected_values import Expected, allowed_rows, compare, expect
from refdiff.oracle.divergence.explain import explanation
from refdiff.oracle.divergence.layouts import Floats, arrange, axes_of, separate_maps
from refdiff.oracle.divergence.report import Divergence, Stage
from refdiff.oracle.printing import list_first
from refdiff.oracle.rounding import FORMATS
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.trace.known_points import Flow, canonical_names, near_point
from refdiff.oracle.trace.points import LSE_UNITS, SINGLE
from refdiff.oracle.trace.trace import Source, Trace, read_trace

COPIES = ("embed_tokens", "values", "lambda_init")
"""Points that are copies of weights or other points: their type does not show the precision of the run."""
BASE = "the base of the logarithm"


def first_divergence(
    mine: Source,
    ref: Source,
    *,
    mode: str = "local",
    aliases: str | Mapping[str, str] = "auto",
    precision: str = "auto",
    model: Any = None,
) -> Divergence:
    """Find the first point of the run `mine` that is wrong.

    A point is wrong if a row has a larger error than rounding explains, or if the rows together show a systematic error
    (`BiasTests`): a factor, a constant, a bias, a wrong ε, or a factor on scores that are not in the trace.

    Args:
        mine, ref: a `Trace`, a dict of arrays, a file or a folder (`read_trace`); refdiff recorded `ref`.
        mode: "local": each point is computed in float64 from the points before it in `mine`, so that an error is
            charged to the point that made it. "free": from the inputs of the run, so that errors add up.
        aliases: "auto" accepts the names of transformers, unilm, timm, vLLM and llama.cpp; "none" only those of
            `refdiff.oracle.trace.known_points`; a dict of your names → points is added to "auto".
        precision: the type that the run computes in, a key of `rounding.FORMATS`; "auto" detects it from the arrays.
        model: the model of `ref`, needed if its file names no model that can be found.

    Raises:
        ValueError: a trace is empty, nothing in `mine` is a point of `ref`, an alias names no point, or an argument has
            another value than the above.
    """
    if mode not in ("local", "free"):
        raise ValueError(f"mode: got {mode!r}, expected one of local, free")
    if precision not in ("auto", *FORMATS):
        raise ValueError(f"precision: got {precision!r}, expected auto or one of {', '.join(FORMATS)}")
    if isinstance(aliases, str) and aliases not in ("auto", "none"):
        raise ValueError(f'aliases: got {aliases!r}, expected "auto", "none", or a dict of your names to points')
    with _naming_files(mine, ref):
        reference, given = read_trace(ref, model=model), read_trace(mine)
        for trace, whose in ((given, "under test"), (reference, "of the reference")):
            if not trace:
                raise ValueError(f"the trace {whose} is empty: it has no array of any point")
        apart = [*_input_differences(given.inputs, reference.inputs)]
        apart += _metadata_differences(given.about, reference.about)
        reference = _rerun_reference(reference)
        names = canonical_names(given, reference, aliases)
        points = separate_maps({path: given[name] for name, path in names.items()}, reference, _interleaved(reference))
        known = {path: points[path] for path in reference if path in points}
        if isinstance(aliases, Mapping):
            for own in aliases.keys() & given.keys():
                if own not in names or (names[own] in points and names[own] not in reference):
                    hint = near_point(str(aliases[own]), reference) or ":"
                    raise ValueError(
                        f"aliases: {own!r} is {aliases[own]!r}, which is no point of the reference{hint} it has "
                        f"{list_first([*reference], 4)}"
                    )
        if not known:
            listed = f"it has {list_first([*given], 4)}, the reference {list_first([*reference], 4)}"
            raise ValueError(
                f"none of the names in the trace is a point of the reference: {listed}{_near_name(given, reference)}"
            )
        precision = precision_of(known) if precision == "auto" else precision
        used = {name for name, path in names.items() if path in known or path not in points}  # or split into maps
        unknown = tuple(name for name in given if name not in used)
        return replace(_compare_points(known, reference, mode, precision, unknown), apart=tuple(apart))


@contextlib.contextmanager
def _naming_files(*sources: Source) -> Iterator[None]:
    """Prefix errors with the names of the files."""
    try:
        yield
    except CheckpointError:  # it names its file
        raise
    except ValueError as error:
        files = dict.fromkeys(str(source) for source in sources if isinstance(source, str | os.PathLike))
        raise (ValueError(f"{', '.join(files)}: {error}") if files else error) from None


def _near_name(given: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Return a hint for the first name that resembles a point's."""
    hints = ((name, near_point(name, reference)) for name in list(given)[:20])
    return next((f"; {name!r}{hint}" for name, hint in hints if hint), "")


def _rerun_reference(reference: Trace) -> Trace:
    """Return the reference with every point in float64; unchanged if it cannot be run again."""
    if reference.run is None:
        return reference
    points: dict[str, NDArray[Any]] = {}

    def keep(path: str, value: Any, **_: Any) -> Any:
        points[path] = np.array(value, dtype=np.float64)
        return value

    reference.run(keep, maps=True)
    return replace(reference, points=points)


def _interleaved(reference: Trace) -> bool:
    """Whether heads 2i and 2i + 1 are a pair."""
    if "spec" in reference.about:
        return bool(reference.about["spec"]["pairing"] == "interleaved")
    variant = VARIANTS.get(reference.about.get("config", {}).get("wiring", "hf"))
    return variant is not None and variant.pairing == "interleaved"


def _compare_points(
    known: dict[str, NDArray[Any]], reference: Trace, mode: str, precision: str, unknown: tuple[str, ...]
) -> Divergence:
    # the expected values are float64 themselves, and a difference that should be 0 has the rounding error of its terms
    unit, tiny = max(FORMATS[precision].u, 2.0**-50), max(FORMATS[precision].tiny, FORMATS["float32"].tiny)
    arrays = {path: arrange(array, path, reference) for path, array in known.items()}
    fitting: dict[str, Floats] = {path: array for path, (array, _) in arrays.items() if array is not None}
    common = THRESHOLDS.trace.tf32_error if precision == "tf32" else 1.0
    if reference.run is None:
        expected, mode = _expect_recorded(fitting, reference, unit, tiny), "recorded"
    else:
        expected = expect(
            reference.run, fitting, unit, tiny, common, local=mode == "local",
            axes=lambda path: axes_of(path, reference).names, padding=lambda path, x: _padding(path, x, reference),
        )  # fmt: skip
    stages = [_stage(path, arrays, expected, reference) for path in reference]
    stages, accepted = _compare_bases(stages, expected)
    bad = next((s.path for s in stages if s.status in ("differs", "equal up to") and s.path not in accepted), None)
    return Divergence(bad, mode, precision, tuple(stages), unknown)


def _compare_bases(stages: list[Stage], expected: Mapping[str, Expected]) -> tuple[list[Stage], set[str]]:
    """Return the stages, and the paths of log-sum-exps that have another base than the reference, as all others have.

    Another base is no mistake, but whatever merges log-sum-exps or computes gradients from them needs one for all.
    """
    sums = [s for s in stages if _is_lse(s.path) and (s.status == "equal" or BASE in s.what)]
    known = [s for s in sums if np.any(np.where(expected[s.path].counted, expected[s.path].value, 0.0))]
    bases = {s.path: s.what if BASE in s.what else "" for s in known}
    found, accepted = [], set()
    for stage in stages:
        base = bases.get(stage.path)
        unlike = next((path for path, other in bases.items() if other != base), None)
        if base and unlike is None:
            accepted.add(stage.path)
        found.append(replace(stage, what=f"{base}; {unlike} has another") if base and unlike else stage)
    return found, accepted


def _is_lse(path: str) -> bool:
    return path.rpartition(".")[2].startswith("lse")


def _padding(path: str, value: Floats, reference: Trace) -> NDArray[np.bool_] | None:
    """Mark the entries at padding: they are unused, and transformers' attention implementations differ there."""
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


def _stage(path: str, arrays: Mapping[str, Any], expected: Mapping[str, Expected], reference: Trace) -> Stage:
    if path not in arrays or path not in expected:
        return Stage(path, "missing")
    array, how = arrays[path]
    if array is None:
        return Stage(path, "differs", how, np.inf)
    stage = _judge(path, array, how, expected, reference)
    for base, log in LSE_UNITS.items() if _is_lse(path) and stage.status != "equal" else ():
        converted = array * (log / LSE_UNITS[reference.lse_base])
        other = _judge(path, converted, how, expected, reference)
        if other.status == "equal":
            what = f"equal up to {BASE}: {base}, not {reference.lse_base}"
            return replace(stage, status="equal up to", what=what, unseen=other.unseen)
    return stage


def _judge(path: str, array: Floats, how: str, expected: Mapping[str, Expected], reference: Trace) -> Stage:
    point = expected[path]
    found = compare(array, point)
    numbers = (found.ratio, found.worst, found.error, found.size)
    if not found.ok:
        if said := explanation(path, array, expected, reference):
            return Stage(path, "equal up to", said, *numbers)
        unit_note = " (root mean squares of the worst row)" if found.worst else ""
        said = f"off by {found.error:.2g} where it should be {found.size:.2g}{unit_note}"
        if np.isinf(found.ratio):
            said = f"{found.error:g} where it should be {found.size:g}"
        return Stage(path, "differs", said, *numbers)
    unseen, worst = _smallest_visible_factor(point), None
    if point.bias_tests is not None:
        with np.errstate(invalid="ignore"):
            worst, limit = point.bias_tests.judge(array - point.value)
        unseen = min(unseen, limit)
    if worst is not None and worst.ratio > 1:
        return Stage(path, "equal up to", f"equal up to {worst}", worst.ratio, (), found.error, found.size, unseen)
    return Stage(path, "equal", f"lies as ({', '.join(how)})" if how else "", *numbers, unseen)


def _smallest_visible_factor(point: Expected) -> float:
    """Return the smallest relative error that would be detected in some row."""
    rows = np.atleast_1d(np.where(point.counted, point.value, 0.0))
    size = np.sqrt(np.mean(rows**2, axis=-1)) if rows.size else np.zeros(0)
    limit = THRESHOLDS.trace.row * allowed_rows(point)
    return float(np.min(limit / np.where(size > 0, size, np.nan), initial=np.inf, where=size > 0))


def _expect_recorded(given: Mapping[str, Floats], reference: Trace, unit: float, tiny: float) -> dict[str, Expected]:
    """Return the reference's recorded arrays as expected values, if the run cannot be repeated.

    The relative error of a point may be `error_growth` times that of the points that it is computed from.
    """
    expected: dict[str, Expected] = {}
    levels: dict[str, float] = {}
    limits = THRESHOLDS.trace
    flow = Flow(reference)
    for path, array in reference.items():
        wide = array.astype(np.float64)
        size = _rms(wide)
        known = [levels[p] for p in flow.parents(path) if p in levels]  # a file may list a point before its parents
        level = max(known, default=limits.recorded_units * unit)
        allowed = limits.error_growth / limits.row * level * size * _norm_gain(path, reference, flow)
        spread = np.broadcast_to(allowed**2 + tiny**2, wide.shape[:-1])
        expected[path] = Expected(wide, spread, _padding(path, wide, reference), unit=unit)
        if path not in given:
            level = math.hypot(level, limits.recorded_units * min(unit, SINGLE))  # sums are added in another order
        elif size:
            off = _rms(given[path] - np.where(np.isfinite(wide), wide, 0.0)) / size
            level = off if level < off <= limits.error_growth * level else level
        levels[path] = level
    return expected


def _norm_gain(path: str, reference: Trace, flow: Flow) -> Floats:
    """Return by how much a norm enlarges the error of each row: small rows more than others; 1 for other points."""
    given = [reference[parent] for parent in flow.parents(path)]
    if "norm" not in path.rpartition(".")[2] or [x.shape for x in given] != [reference[path].shape]:
        return np.ones(())
    rows = given[0].astype(np.float64)
    sizes = np.sqrt(np.mean(rows**2, axis=-1))
    ratio: Floats = np.maximum(_rms(rows) / np.where(sizes > 0, sizes, np.inf), 1.0)
    return ratio


def _rms(x: Floats) -> float:
    finite = x[np.isfinite(x)]
    return float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0


def precision_of(points: Mapping[str, NDArray[Any]]) -> str:
    """Return the name of the type that a run computed in: the coarsest type of at least a quarter of its arrays.

    A float32 array of 16-bit numbers counts as an array of that 16-bit type, which was widened for storage.

    Raises:
        ValueError: there is no floating-point array.
    """
    computed = (x for path, x in points.items() if path.rpartition(".")[2] not in COPIES)
    kinds = [_narrowest_type(x) for x in computed if x.dtype.kind not in "biu"]
    if not kinds:
        raise ValueError("the trace has no array of floating-point numbers that is a point of the run")
    for name in ("bfloat16", "float16", "float32"):
        if kinds.count(name) >= THRESHOLDS.trace.precision_share * len(kinds):
            return name
    return "float64"


def _narrowest_type(x: NDArray[Any]) -> str:
    """Return the narrowest known type that represents all numbers of a float32 or float64 array."""
    if x.dtype.name in ("bfloat16", "float16") or x.size < THRESHOLDS.trace.min_widened:
        return x.dtype.name
    finite = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        single = finite.astype(np.float32)
        if not np.array_equal(single, finite):
            return "float64"
        if not (single.view(np.uint32) & 0xFFFF).any():
            return "bfloat16"
        return "float16" if np.array_equal(single.astype(np.float16), single) else "float32"


def _input_differences(mine: Mapping[str, Any], ref: Mapping[str, Any]) -> list[str]:
    """Say which inputs of two recordings differ, which would explain a divergence.

    Raises:
        ValueError: the numbers of tokens differ, so that no points are comparable.
    """
    found = []
    for name in (n for n in ref if n in mine):
        x, y = (np.asarray(inputs[name]) for inputs in (mine, ref))
        if [n for n in x.shape if n != 1] == [n for n in y.shape if n != 1]:  # e.g. without a batch axis
            x = x.reshape(y.shape)
        what = "tokens" if name == "input_ids" else name
        if x.shape != y.shape:
            shapes = f"{x.shape} and {y.shape}{_first_difference(name, x, y)}"
            said = f"the two runs have {what} of different shapes, {shapes}"
            if name == "input_ids" and x.size != y.size:
                raise ValueError(f"{said}; record the same text in both")
            found.append(said)
        elif not np.array_equal(x.astype(np.float64), y.astype(np.float64), equal_nan=True):
            found.append(f"the two runs have different {what}{_first_difference(name, x, y)}")
    return found


def _first_difference(name: str, x: Any, y: Any) -> str:
    """Say from which position on the tokens differ."""
    if name != "input_ids" or x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        return ""
    n = min(x.shape[1], y.shape[1])
    unlike = (x[:, :n] != y[:, :n]).any(0)
    at = int(np.argmax(unlike)) if unlike.any() else n
    return f" from position {at}" if x.shape == y.shape else f", and different ones from position {at}"


def _metadata_differences(mine: Mapping[str, Any], ref: Mapping[str, Any]) -> list[str]:
    """Say how the models or specs of two recordings differ, as far as both are known."""
    found = []
    for part, what in (("config", "models"), ("spec", "specs")):
        if part in mine and part in ref and (other := _differing_fields(mine[part], ref[part])):
            found.append(f"recorded of {what} of different {other}")
    if "dtype" in mine and "dtype" in ref and mine["dtype"] != ref["dtype"]:
        found.append(
            f"recorded in {mine['dtype']}, the reference in {ref['dtype']}: the weights of one of them are rounded"
        )
    places = mine.get("model"), ref.get("model")
    if not found and None not in places and places[0] != places[1]:
        found.append(f"recorded of the model {places[0]}, the reference of {places[1]}")
    return found


def _differing_fields(mine: Mapping[str, Any], ref: Mapping[str, Any]) -> str:
    """List the fields in which two mappings differ, with both values."""
    names = [name for name in sorted({*mine, *ref}) if mine.get(name) != ref.get(name)]
    return list_first([f"{name} ({mine.get(name)} and {ref.get(name)})" for name in names], 4)
