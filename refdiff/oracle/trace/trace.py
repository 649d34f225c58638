"""Record every intermediate of a run of a model, a spec or a torch module; write and read traces; repeat runs.

A trace is read from a dict of arrays or a file.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, to_numpy
from refdiff.backends import overlay
from refdiff.errors import CheckpointError
from refdiff.messages import show_value
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.pretrained import PreTrainedModel
from refdiff.model.weights import ARCHITECTURES, flatten, nest
from refdiff.oracle.inputs.arrays import any_array, read_arrays, write_arrays
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.printing import array_summary
from refdiff.oracle.spec import Spec
from refdiff.oracle.trace.point_names import near_point
from refdiff.oracle.trace.points import Points, Visit
from refdiff.oracle.truth.attention_operands import truth_ops
from refdiff.oracle.truth.forward import forward

_LAYER = re.compile(r"(.*\blayers)\.(\d+)$")
FORMAT = "refdiff trace 1"
ARRAYS = ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "labels")
"""The arguments of a model that are kept with a trace."""
INPUT = "inputs."
"""The prefix of the names of inputs in a file."""


@dataclass(frozen=True)
class Trace(Mapping[str, NDArray[Any]]):
    """The arrays of a run by the path of their point, in the order of computation.

    inputs: the arguments of the model or spec. about: "model" (its folder or hub repo), "class", "config" and "dtype"
    of the model; or "spec". run: repeats the run in float64 by the reference equations, and calls a visitor at each
    point (`refdiff.oracle.trace.points`); None if the trace was read from a file and its model was not found.
    """

    points: dict[str, NDArray[Any]]
    inputs: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    run: Callable[..., None] | None = None

    def __repr__(self) -> str:
        inputs = f"; inputs: {array_summary(self.inputs)}" if self.inputs else ""
        of = "Spec" if "spec" in self.about else self.about.get("class", "no model named")
        rerun = "can" if self.run is not None else "cannot"
        points = f"{len(self)} points{': ' if self.points else ''}{array_summary(self.points)}"
        return f"Trace({of}, {points}{inputs}; {rerun} be run again)"

    def __getitem__(self, path: str) -> NDArray[Any]:
        """Return the array of a point.

        Raises:
            KeyError: no point has this name; the message has the nearest name.
        """
        if path in self.points:
            return self.points[path]
        raise KeyError(f"{path!r} is no point of this trace{near_point(path, self.points)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def lse_base(self) -> str:
        """The base of the log-sum-exps: that of the spec, or "e" for a model."""
        base: str = self.about.get("spec", {}).get("lse_base", "e")
        return base

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file for `read_trace`, each array in its own type."""
        arrays = {**self.points, **{INPUT + name: np.asarray(x) for name, x in self.inputs.items()}}
        about = {"format": FORMAT, "about": json.dumps(self.about), "order": json.dumps(list(self.points))}
        write_arrays(path, arrays, about)


Source = Trace | Mapping[str, Any] | str | os.PathLike[str]


def trace(of: PreTrainedModel | Spec | str, inputs: Any = None, *, maps: bool = False, **more: Any) -> Trace:
    """Run a model or the attention of a spec once, and record every intermediate.

    Args:
        of: a model of refdiff, with any dtype and kernels; or a `Spec`, or a preset's name as in `truth`.
        inputs: for a model `input_ids` (B, T), or a dict of its arguments; for a spec its input dictionary
            (`refdiff.oracle.inputs`). With a `cache` only the new tokens are recorded, and the run cannot be repeated.
        maps: also record the attention weights `probs1` and `probs2`.
        more: further arguments of the model, or further inputs of the spec.

    Raises:
        ValueError: the inputs do not fit the model or spec.
    """
    points: dict[str, NDArray[Any]] = {}

    def keep(path: str, value: Array, **_: Any) -> Array:
        points[path] = to_numpy(value).copy()
        return value

    if isinstance(of, Spec | str):
        given = {name: any_array(x, name) for name, x in {**(inputs or {}), **more}.items()}
        of = resolve_spec(of, given)
        run = repeat_spec(of, given)
        run(keep, maps=maps, whole=True)
        return Trace(points, given, {"spec": of.to_dict()}, run)
    call = dict(inputs) if isinstance(inputs, Mapping) else {} if inputs is None else {"input_ids": inputs}
    call = {name: any_array(x, name) if name in ARRAYS else x for name, x in (call | more).items() if x is not None}
    model = copy.copy(of)
    model.ops = Points(flatten(of.params), keep, maps=maps).wrap(of.ops)
    model(**call)  # type: ignore[operator]
    kept = {name: x for name, x in call.items() if name in ARRAYS}
    rerun = None if call.get("cache") is not None else repeat_model(of, kept)
    about = {"model": of.source, "class": of.architecture, "dtype": of.dtype, "config": _as_json(of.config)}
    return Trace(points, kept, about, rerun)


def repeat_model(of: PreTrainedModel, call: Mapping[str, Any]) -> Callable[..., None]:
    """Return a function that repeats a model's forward pass in float64, by the reference equations."""

    @cache
    def exact() -> PreTrainedModel:
        # matrices are cast to float64 only when they are used: all of them at once would take twice the memory
        flat = {name: to_numpy(x) for name, x in flatten(of.params).items()}
        wide = {name: x if x.ndim > 1 else x.astype(np.float64) for name, x in flat.items()}
        return type(of)(of.config, nest(wide), dtype="float64", kernels="reference")

    def run(visit: Visit, *, maps: bool = False, whole: bool = False) -> None:
        model = copy.copy(exact())
        ops = overlay(model.ops, lambda name, f: (lambda *x: f(*x).astype(np.float64)) if name == "embedding" else f)
        model.ops = Points(flatten(model.params), visit, maps=maps, whole=whole).wrap(ops)
        model(**call, use_cache=False)  # type: ignore[operator]

    return run


def repeat_spec(spec: Spec, inputs: Mapping[str, Any]) -> Callable[..., None]:
    """Return a function that repeats the attention of a spec in float64, by the reference equations."""
    exact = as_float64(spec, inputs)

    def run(visit: Visit, *, maps: bool = False, whole: bool = False) -> None:
        points = Points(exact, visit, maps=maps, whole=whole, plain=spec.is_plain, lse_base=spec.lse_base)
        visit("out", forward(spec, exact, points.wrap(truth_ops())))

    return run


def read_trace(source: Source, *, model: Any = None) -> Trace:
    """Read a trace.

    Args:
        source: a dict of arrays of any library, or a safetensors or npz file, written by refdiff or by you.
        model: the model of the run, or its folder or hub repo, which is needed to repeat the run; by default the folder
            that the file names, if it exists.

    Raises:
        CheckpointError: the file is broken, or of another kind.
    """
    if isinstance(source, Trace):
        return source
    if isinstance(source, Mapping):
        return _without_run({name: any_array(x, name) for name, x in source.items()})
    path = Path(source)
    arrays, metadata = read_arrays(path)
    if metadata.get("format") != FORMAT:
        return _without_run(arrays)
    try:
        about, order = json.loads(metadata["about"]), json.loads(metadata["order"])
        points = {name: arrays[name] for name in order}
        inputs = {name.removeprefix(INPUT): x for name, x in arrays.items() if name not in points}
        run = _make_run(about, inputs, model)
        return Trace(points, inputs, about, None if run is None else partial(_rerun, path, run))
    except CheckpointError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a trace that this version writes: {type(error).__name__}: {error}; record it again"
        ) from error


def _rerun(path: Path, run: Callable[..., None], visit: Callable[..., Any], **options: Any) -> None:
    """Repeat the run of a file; report inputs that the model does not accept."""
    try:
        run(visit, **options)
    except CheckpointError:
        raise
    except (ValueError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path}: its run cannot be repeated: {error}") from error


def _without_run(arrays: dict[str, Any]) -> Trace:
    """Return a trace of bare arrays; those whose names begin with `INPUT` are inputs of the run."""
    inputs = {name.removeprefix(INPUT): x for name, x in arrays.items() if name.startswith(INPUT)}
    return Trace({name: x for name, x in arrays.items() if not name.startswith(INPUT)}, inputs)


def _has_config(folder: Path, config: Any) -> bool:
    """Whether a folder has a model with this config: a trace may come from somebody else, so no more is read."""
    try:
        return folder.is_dir() and _as_json(DiffLlamaConfig.from_pretrained(folder)) == config
    except (CheckpointError, OSError, ValueError):
        return False


def _as_json(config: DiffLlamaConfig) -> Any:
    """Return the config as it is after reading it from a file."""
    return json.loads(json.dumps(config.to_dict()))


def _make_run(about: dict[str, Any], inputs: dict[str, Any], model: Any) -> Any:
    """Return a function that repeats the run, or None if its model is not found."""
    if "spec" in about:
        return repeat_spec(Spec(**about["spec"]), inputs)
    if model is None:
        model = about.get("model")
        if not isinstance(model, str) or not _has_config(Path(model), about["config"]):
            return None
        model = Path(model)
    if isinstance(model, str | os.PathLike):
        if about["class"] not in ARCHITECTURES:
            raise ValueError(f"class: got {show_value(about['class'])}, expected {', '.join(ARCHITECTURES)}")
        import refdiff

        # 16-bit types are computed with in float32, and were when the trace was made: a float32 run of such weights
        kind = getattr(refdiff, about["class"])
        model = kind.from_pretrained(model, dtype=about["dtype"], kernels="reference")
    return repeat_model(model, {name: np.asarray(x) for name, x in inputs.items()})


@contextmanager
def hooks(module: Any) -> Iterator[dict[str, NDArray[Any]]]:
    """Record a torch module while it runs: `with hooks(model) as mine: model(ids)`, then `first_divergence(mine, ref)`.

    The outputs of all submodules are recorded, and the inputs of those whose input is no output of another submodule.
    Further calls of a submodule get a number, as further visits of a point do: "model.rotary_emb.cos[1]".
    """
    points: dict[str, NDArray[Any]] = {}
    visits = Counter[tuple[str, str]]()
    names = dict(module.named_modules())
    last = _last_layer(names)

    def keep(name: str, what: str, value: Any) -> None:
        point = _point_path(name, what, last)
        if point and hasattr(value, "__dlpack__") and hasattr(value, "shape"):
            n = visits[name, what]  # a point may be the output of one module and the input of another
            visits[name, what] += 1
            points[f"{point}[{n}]" if n else point] = any_array(value, point).copy()

    def before(name: str, _: Any, args: Any, kwargs: Any) -> None:
        for value in (*args[:1], *(kwargs[key] for key in ("hidden_states", "x") if key in kwargs)):
            keep(name, "inputs", value)

    def after(name: str, _: Any, args: Any, out: Any) -> None:
        several = isinstance(out, tuple | list)
        for i, value in enumerate(out if several else (out,)):
            keep(name, f"outputs_{i}" if several else "outputs", value)

    with ExitStack() as handles:
        for name, part in names.items():
            if name:
                handles.callback(part.register_forward_pre_hook(partial(before, name), with_kwargs=True).remove)
                handles.callback(part.register_forward_hook(partial(after, name)).remove)
        yield points


def _last_layer(modules: Any) -> int:
    return max((int(m[2]) for name in modules if (m := _LAYER.match(name))), default=-1)


def _point_path(module: str, what: str, last_layer: int) -> str | None:
    """Return the path of the point that an input or output of a module is, or None."""
    head, _, name = module.rpartition(".")
    layer = _LAYER.match(module)
    if what == "inputs":
        if layer:
            return f"{layer[1]}.{int(layer[2]) - 1}" if int(layer[2]) else None
        if name == "norm" and not head.endswith(("attn", "mlp")):
            return f"{head}.layers.{last_layer}".lstrip(".")
        if name == "embed_tokens":
            return "inputs.input_ids"
        before = {"groupnorm": "diff", "subln": "diff", "sub_norm": "diff", "o_proj": "scaled", "out_proj": "scaled"}
        if name in before:
            return f"{head}.{before[name]}"
        return f"{module}.input" if name == "post_attention_layernorm" else None
    if name == "rotary_emb":
        return {"outputs_0": f"{module}.cos", "outputs_1": f"{module}.sin"}.get(what)
    if name in ("self_attn", "attn"):
        return f"{module}.probs" if what == "outputs_1" else None
    if name == "mlp":
        return None  # the same as the output of down_proj
    return module if what in ("outputs", "outputs_0") else None
