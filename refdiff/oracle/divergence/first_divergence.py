"""Find the first point of a run that is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.model.variants import VARIANTS
from refdiff.oracle.divergence.expected import Expected, expect
from refdiff.oracle.divergence.layouts import Floats, arrange, has_heads, separate_maps
from refdiff.oracle.divergence.report import Divergence, Stage
from refdiff.oracle.printing import list_first
from refdiff.oracle.rounding import FORMATS, round_to
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.trace.point_names import canonical_names, near_point
from refdiff.oracle.trace.points import LSE_UNITS
from refdiff.oracle.trace.trace import Source, Trace, read_trace

COPIES = ("embed_tokens", "values", "lambda_init")
"""Points that are copies of weights or other points: their type does not show the precision of the run."""


def first_divergence(
    mine: Source,
    ref: Source,
    *,
    aliases: Mapping[str, str] | None = None,
    precision: str = "auto",
    model: Any = None,
) -> Divergence:
    """Find the first point of the run `mine` that is wrong.

    A point is wrong if a row or number has a larger error than rounding explains, or all rows together have a factor.
    Each point is computed in float64 from the points before it in `mine`, so that an error is charged to the point that
    made it.

    Args:
        mine, ref: a `Trace`, a dict of arrays or a file (`read_trace`); refdiff recorded `ref`, whose run is repeated.
        aliases: your names → points, beside the names of transformers, unilm, timm and vLLM.
        precision: the type that the run computes in, a key of `rounding.FORMATS`; "auto" detects it from the arrays.
        model: the model of `ref`, needed if its file names no model that can be found.

    Raises:
        ValueError: `mine` is empty, nothing in it is a point of `ref`, an alias names no point, the run of `ref` cannot
            be repeated, or an argument has another value than the above.
    """
    if precision not in ("auto", *FORMATS):
        raise ValueError(f"precision: got {precision!r}, expected auto or one of {', '.join(FORMATS)}")
    aliases = aliases or {}
    reference, given = read_trace(ref, model=model), read_trace(mine)
    if not given:
        raise ValueError("the trace under test is empty: it has no array of any point")
    run = reference.run
    if run is None:
        label = f"{os.fspath(ref)}: " if isinstance(ref, str | os.PathLike) else ""
        raise ValueError(f"{label}the run of the reference cannot be repeated: its model is not here; give the model")
    apart = _input_differences(given.inputs, reference.inputs)
    reference = replace(reference, points=_repeat(run))
    names = canonical_names(given, reference, aliases)
    points = separate_maps({path: given[name] for name, path in names.items()}, reference, _interleaved(reference))
    known = {path: points[path] for path in reference if path in points}
    for own in aliases.keys() & given.keys():
        if names[own] in points and names[own] not in reference:
            hint = near_point(aliases[own], reference)
            raise ValueError(f"aliases: {own!r} is {aliases[own]!r}, which is no point of the reference{hint}")
    if not known:
        hints = (f"; {name!r}{hint}" for name in list(given)[:20] if (hint := near_point(name, reference)))
        raise ValueError(
            f"none of the names in the trace is a point of the reference: it has {list_first([*given], 4)}, the "
            f"reference {list_first([*reference], 4)}{next(hints, '')}"
        )
    precision = precision_of(known) if precision == "auto" else precision
    used = {name for name, path in names.items() if path in known or path not in points}  # or split into maps
    unknown = tuple(name for name in given if name not in used)

    def padding(path: str, value: Floats) -> NDArray[np.bool_] | None:
        return _padding(path, value, reference)

    arrays = {path: arrange(array, path, reference) for path, array in known.items()}
    fitting = {path: array for path, (array, _) in arrays.items() if array is not None}
    expected = expect(run, fitting, precision, padding)
    stages = [_stage(path, arrays, expected, reference) for path in reference]
    wrong = next((s.path for s in stages if s.status == "differs"), None)
    return Divergence(wrong, precision, tuple(stages), unknown, tuple(apart))


def _repeat(run: Callable[..., None]) -> dict[str, NDArray[Any]]:
    """Return every point of a run in float64."""
    points: dict[str, NDArray[Any]] = {}

    def keep(path: str, value: Any, **_: Any) -> Any:
        points[path] = np.array(value, dtype=np.float64)
        return value

    run(keep, maps=True)
    return points


def _interleaved(reference: Trace) -> bool:
    """Whether heads 2i and 2i + 1 are a pair."""
    if "spec" in reference.about:
        return bool(reference.about["spec"]["pairing"] == "interleaved")
    model_type = reference.about.get("config", {}).get("model_type")
    return any(variant.pairing == "interleaved" for variant in VARIANTS.values() if variant.model_type == model_type)


def _padding(path: str, value: Floats, reference: Trace) -> NDArray[np.bool_] | None:
    """Mark the entries at padding: they are unused, and transformers' attention implementations differ there."""
    mask = reference.inputs.get("attention_mask")
    if mask is None or np.ndim(mask) != 2 or np.all(mask):
        return None
    place = 2 if has_heads(path) else 1
    if place >= value.ndim:
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
    array, said = arrays[path]
    if array is None:
        return Stage(path, "differs", said, np.inf)
    point, base = expected[path], reference.lse_base
    found = point.compare(array)
    for other, log in LSE_UNITS.items() if path.rpartition(".")[2].startswith("lse") and not found.ok else ():
        if (converted := point.compare(array * (log / LSE_UNITS[base]))).ok:  # another base is no mistake
            found, said = converted, f"to the base {other}, not {base}"
    numbers = (found.ratio, found.row, found.error, found.size)
    if found.ok:
        return Stage(path, "equal", said, *numbers)
    if np.isinf(found.ratio):
        said = f"{found.error:g} where it should be {found.size:g}"
    elif found.worst is not None and found.worst.name == "slope":
        said = f"{found.worst.value:.2g} too large or too small on the whole"
    else:
        unit_note = " (root mean squares of the worst row)" if array.ndim else ""
        said = f"off by {found.error:.2g} where it should be {found.size:.2g}{unit_note}"
    return Stage(path, "differs", said, *numbers)


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
    finite = x[np.isfinite(x)].astype(np.float64)
    for name in ("bfloat16", "float16", "float32"):
        if np.array_equal(round_to(finite, name), finite):
            return name
    return "float64"


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
            said = f"the two runs have {what} of different shapes, {x.shape} and {y.shape}"
            raise ValueError(f"{said}; record the same text in both")
        if not np.array_equal(x.astype(np.float64), y.astype(np.float64), equal_nan=True):
            unlike = np.flatnonzero((x != y).reshape(-1, x.shape[-1]).any(axis=0)) if x.ndim else x
            since = f" from position {unlike[0]}" if name == "input_ids" and len(unlike) else ""
            found.append(f"the two runs have different {what}{since}")
    return found
