"""Every intermediate of a run: recorded from a model, a spec or a torch module, kept in a file, run again.

A trace is read from a dict of arrays, a file, or a folder of transformers' debugger.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, to_numpy
from refdiff.backends import ops_for, overlay
from refdiff.errors import CheckpointError
from refdiff.messages import show_value
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.pretrained import PreTrainedModel
from refdiff.model.weights import ARCHITECTURES, flatten, nest
from refdiff.oracle.inputs.arrays import any_array, read_arrays, write_arrays
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.printing import array_summary
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.resolve import resolve_spec
from refdiff.oracle.trace.known_points import near_point
from refdiff.oracle.trace.points import Points, Visit
from refdiff.oracle.truth.forward import forward

_LAYER = re.compile(r"(.*\blayers)\.(\d+)$")
_DUMP = re.compile(r"([^.]+)\.(.+)_(inputs_args_0|inputs_kwargs_hidden_states|inputs_kwargs_x|outputs|outputs_\d+)")
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


Source = Trace | Mapping[str, Any] | str | os.PathLike[str]


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


def read_trace(source: Source, *, model: Any = None) -> Trace:
    """Return what `source` holds as a trace.

    Args:
        source: a dict of arrays of any library; a safetensors or npz file, of this package or of yours; a folder that
            transformers' `model_addition_debugger_context` has written with `use_repr=False`.
        model: the model of the run, or its folder or hub repo; by default the one that the file names, if it is there.
            With it the trace can be run again.

    Raises:
        CheckpointError: the file or folder is broken, or of another kind.
    """
    if isinstance(source, Trace):
        return source
    if isinstance(source, Mapping):
        return _bare({name: any_array(x, name) for name, x in source.items()})
    path = Path(source)
    if path.is_dir():
        return _bare(read_debugger_folder(path))
    arrays, metadata = read_arrays(path)
    if metadata.get("format") != FORMAT:
        return _bare(arrays)
    try:
        about, order = json.loads(metadata["about"]), json.loads(metadata["order"])
        points = {name: arrays[name] for name in order}
        inputs = {name.removeprefix(INPUT): x for name, x in arrays.items() if name not in points}
        run = _run(about, inputs, model)
        return Trace(points, inputs, about, None if run is None else partial(_again, path, run))
    except CheckpointError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a trace that this version writes: {type(error).__name__}: {error}; record it again"
        ) from error


def _again(path: Path, run: Callable[..., None], visit: Callable[..., Any], **options: Any) -> None:
    """Repeat the run of a file, whose inputs may be none that the model takes."""
    try:
        run(visit, **options)
    except CheckpointError:
        raise
    except (ValueError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path}: its run cannot be repeated: {error}") from error


def _bare(arrays: dict[str, Any]) -> Trace:
    """Points, and beside them what the run was called with, as far as it is there."""
    inputs = {name.removeprefix(INPUT): x for name, x in arrays.items() if name.startswith(INPUT)}
    return Trace({name: x for name, x in arrays.items() if not name.startswith(INPUT)}, inputs)


def _is_the_model(folder: Path, config: Any) -> bool:
    """Whether a folder that a trace names has a model of the config that the trace has.

    A trace from elsewhere could name any folder of its reader's: nothing but a checkpoint's config is read for this.
    """
    try:
        found = folder.is_dir() and DiffLlamaConfig.from_pretrained(folder).to_dict()
    except (CheckpointError, OSError, ValueError):
        return False
    return found is not False and json.loads(json.dumps(found)) == config


def _run(about: dict[str, Any], inputs: dict[str, Any], model: Any) -> Any:
    """What runs the trace again, or None where its model is not at hand."""
    if "spec" in about:
        return SpecRun(Spec(**about["spec"]), inputs)
    if model is None:
        model = about.get("model")
        if not isinstance(model, str) or not _is_the_model(Path(model), about["config"]):
            return None
    if isinstance(model, str | os.PathLike):
        if about["class"] not in ARCHITECTURES:
            raise ValueError(f"class: got {show_value(about['class'])}, expected {', '.join(ARCHITECTURES)}")
        import refdiff

        # 16-bit types are computed with in float32, and were when the trace was made: a float32 run of such weights
        kind = getattr(refdiff, about["class"])
        model = kind.from_pretrained(model, dtype=about["dtype"], kernels="reference")
    return ModelRun(model, {name: np.asarray(x) for name, x in inputs.items()})


def read_debugger_folder(folder: Path) -> dict[str, NDArray[Any]]:
    """Read a folder that `model_addition_debugger_context(model, debug_path=folder, use_repr=False)` has written.

    Raises:
        CheckpointError: it is another folder, or holds no tensors: written with use_repr=True, the default, it has the
            first and last few numbers of each as text.
    """
    if not any(folder.glob("*_debug_tree_*.json")):
        raise CheckpointError(
            f"{folder}: no folder of transformers' model_addition_debugger_context: no *_debug_tree_*.json in it"
        )
    seen: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if match := _DUMP.fullmatch(path.stem):
            _, module, what = match.groups()
            seen.setdefault(module, {})["inputs" if what.startswith("inputs") else what] = path
    if not seen:
        raise CheckpointError(
            f"{folder}: no tensors: let model_addition_debugger_context write them with use_repr=False; by default it "
            "prints a few numbers of each"
        )
    points: dict[str, NDArray[Any]] = {}
    last = _last_layer(seen)
    for module, files in seen.items():
        for what, path in files.items():
            if point := _point(module, what, last):
                arrays, _ = read_arrays(path, folder=folder)
                if "data" not in arrays:
                    raise CheckpointError(
                        f"{path}: no tensor is called data, as transformers' debugger names it; write it again"
                    )
                points[point] = arrays["data"]
    return points


@contextmanager
def hooks(module: Any) -> Iterator[dict[str, NDArray[Any]]]:
    """Record a torch module while it runs: `with hooks(model) as mine: model(ids)`, then `first_divergence(mine, ref)`.

    Takes the outputs of its modules, and the inputs of those before which something is computed outside of any module.
    """
    points: dict[str, NDArray[Any]] = {}
    names = dict(module.named_modules())
    last = _last_layer(names)

    def keep(name: str, what: str, value: Any) -> None:
        point = _point(name, what, last)
        if point and hasattr(value, "__dlpack__") and hasattr(value, "shape"):
            points[point] = any_array(value, point).copy()

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


def _point(module: str, what: str, last_layer: int) -> str | None:
    """The point that an input or output of a module is."""
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
        return None  # what down_proj gives
    return module if what in ("outputs", "outputs_0") else None
