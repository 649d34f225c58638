"""A trace from whatever holds one: a dict of arrays, a file, a folder of transformers' debugger."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.messages import show_value
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.weights import ARCHITECTURES
from refdiff.oracle.inputs.arrays import any_array, read_arrays
from refdiff.oracle.spec import Spec
from refdiff.oracle.trace.torch_hooks import read_debugger_folder
from refdiff.oracle.trace.trace import FORMAT, INPUT, ModelRun, SpecRun, Trace

Source = Trace | Mapping[str, Any] | str | os.PathLike[str]


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
