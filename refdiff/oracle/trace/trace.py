"""Every intermediate of a run: recorded from a model or from a spec and its inputs, kept in a file, run again."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, to_numpy
from refdiff.backends import ops_for, overlay
from refdiff.model.pretrained import PreTrainedModel
from refdiff.model.weights import flatten, nest
from refdiff.oracle.inputs.arrays import any_array, write_arrays
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.printing import array_summary
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.resolve import resolve_spec
from refdiff.oracle.trace.point_names import near_point
from refdiff.oracle.trace.points import Points, Visit
from refdiff.oracle.truth.forward import forward

FORMAT = "refdiff trace 1"
ARRAYS = ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "labels")
"""The arguments of a model that are kept with a trace."""

INPUT = "inputs."
"""What the names of inputs begin with in a file."""


@dataclass(frozen=True)
class Trace(Mapping[str, NDArray[Any]]):
    """The arrays of a run by the path of their point, in the order in which they were computed.

    inputs: what the model or spec was called with. about: what it was: "model", the folder or hub repo it came from,
    "class", "config", "dtype"; or "spec". run: runs it again in float64 as the equations are written, letting somebody
    look at each point (`refdiff.oracle.trace.points`); None where a trace was read and its model is not at hand.
    """

    points: dict[str, NDArray[Any]]
    inputs: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    run: Callable[..., None] | None = None

    def __repr__(self) -> str:
        inputs = f"; inputs: {array_summary(self.inputs)}" if self.inputs else ""
        of = "Spec" if "spec" in self.about else self.about.get("class", "no model named")
        again = "can" if self.run is not None else "cannot"
        points = f"{len(self)} points{': ' if self.points else ''}{array_summary(self.points)}"
        return f"Trace({of}, {points}{inputs}; {again} be run again)"

    def __getitem__(self, path: str) -> NDArray[Any]:
        """The array of a point.

        Raises:
            KeyError: there is none of this name; with the nearest name.
        """
        if path in self.points:
            return self.points[path]
        raise KeyError(f"{path!r} is no point of this trace{near_point(path, self.points)}")

    def __contains__(self, path: object) -> bool:
        return path in self.points

    def __iter__(self) -> Iterator[str]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `read_trace` reads, each array in its own type."""
        clashes = [name for name in self.points if name.startswith(INPUT)]
        if clashes:
            raise ValueError(f"{clashes[0]}: names that begin with {INPUT!r} are kept for the inputs of a run")
        arrays = {**self.points, **{INPUT + name: np.asarray(x) for name, x in self.inputs.items()}}
        about = {"format": FORMAT, "about": json.dumps(self.about), "order": json.dumps(list(self.points))}
        write_arrays(path, arrays, about)


def trace(of: PreTrainedModel | Spec | str, inputs: Any = None, *, maps: bool = False, **more: Any) -> Trace:
    """Run a model, or the attention of a spec, once, and keep every intermediate.

    Args:
        of: a model of this package, in whatever dtype and with whatever kernels it has; or a `Spec`, or a preset's name
            as in `truth`.
        inputs: what a model is called with: `input_ids` (B, T), or a dict of its arguments, which `more` adds to. Of a
            spec, its input dictionary (`refdiff.oracle.inputs`). With a `cache`, the new tokens are recorded, and the
            trace cannot be run again.
        maps: keep the attention weights too, `probs1` and `probs2`.

    Raises:
        ValueError: inputs that do not fit.
    """
    points: dict[str, NDArray[Any]] = {}

    def keep(path: str, value: Array, **_: Any) -> Array:
        points[path] = to_numpy(value).copy()
        return value

    if isinstance(of, Spec | str):
        given = {name: any_array(x, name) for name, x in {**(inputs or {}), **more}.items()}
        of = resolve_spec(of, given)
        run = SpecRun(of, given)
        run(keep, maps=maps, whole=True)
        return Trace(points, given, {"spec": of.to_dict()}, run)
    call = dict(inputs) if isinstance(inputs, Mapping) else {} if inputs is None else {"input_ids": inputs}
    call = {name: any_array(x, name) if name in ARRAYS else x for name, x in (call | more).items() if x is not None}
    model = copy.copy(of)
    model.ops = Points(flatten(of.params), keep, maps=maps).over(of.ops)
    model(**call)  # type: ignore[operator]
    kept = {name: x for name, x in call.items() if name in ARRAYS}
    again = None if call.get("cache") is not None else ModelRun(of, kept)
    config = json.loads(json.dumps(of.config.to_dict()))  # as a file holds it
    about = {"model": of.source, "class": type(of).__name__, "dtype": of.dtype, "config": config}
    return Trace(points, kept, about, again)


class ModelRun:
    """A model's forward pass on the same inputs, in float64, by the equations."""

    def __init__(self, model: PreTrainedModel, call: Mapping[str, Any]) -> None:
        self._of, self._call = model, {**call, "use_cache": False}
        self._exact: PreTrainedModel | None = None

    def __call__(self, visit: Visit, *, maps: bool = False, whole: bool = False) -> None:
        if self._exact is None:
            # matrices are widened when they are multiplied with: all of them at once would take twice the memory
            flat = {name: to_numpy(x) for name, x in flatten(self._of.params).items()}
            wide = {name: x if x.ndim > 1 else x.astype(np.float64) for name, x in flat.items()}
            self._exact = type(self._of)(self._of.config, nest(wide), dtype="float64", kernels="reference")
        model = copy.copy(self._exact)
        ops = overlay(model.ops, lambda name, f: (lambda *x: f(*x).astype(np.float64)) if name == "embedding" else f)
        model.ops = Points(flatten(model.params), visit, maps=maps, whole=whole).over(ops)
        model(**self._call)  # type: ignore[operator]


class SpecRun:
    """The attention of a spec on the same inputs, in float64, by the equations."""

    def __init__(self, spec: Spec, inputs: Mapping[str, Any]) -> None:
        self._spec, self._inputs = spec, as_float64(spec, inputs)

    def __call__(self, visit: Visit, *, maps: bool = False, whole: bool = False) -> None:
        points = Points(self._inputs, visit, maps=maps, whole=whole, plain=self._spec.is_plain)
        visit("out", forward(self._spec, self._inputs, points.over(ops_for())))
