"""A folder on disk → the nested dict of arrays that the model computes with."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Deferred, bfloat16, to_numpy
from refdiff.errors import CheckpointError
from refdiff.messages import list_problems, show_value, warn
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.config_checks import DTYPES
from refdiff.model.weights.folder import open_checkpoint
from refdiff.model.weights.initialize import draw
from refdiff.model.weights.names import (
    HEAD_PARAMETERS,
    backbone_prefix,
    count_parameters,
    flatten,
    layer_problems,
    nest,
    parameter_shapes,
    stored_architecture,
    with_prefix,
)
from refdiff.model.weights.precision import NBYTES, STORED, TILE, compute_dtype, to_compute
from refdiff.model.weights.safetensors_file import SafetensorsFile

ALWAYS_DRAWN = 1_000_000
"""The numbers of a head that is drawn however small the checkpoint is."""

_Place = tuple[SafetensorsFile, str]
"""A file and the name of a tensor in it."""


def load(
    folder: str | os.PathLike[str],
    config: DiffLlamaConfig,
    architecture: str,
    *,
    dtype: str = "auto",
    stored: bool = False,
    deferred: bool = False,
    mapped: bool = True,
) -> dict[str, Any]:
    """Load a checkpoint as the parameters of `architecture`: nested dicts of read-only float32 or float64 arrays.

    Names, shapes and types are checked first, and all problems reported together. Where the stored type is the wanted
    one (see `resolve_dtype`), the arrays are views of the file: nothing is copied, and nothing read before it is
    used. Values are not checked: a checkpoint with NaN loads, as in transformers, and `nonfinite` finds the place.

    With `stored`, matrices of 16 bits whose values `dtype` can hold stay views of the file too, of NumPy's float16
    or ml_dtypes' bfloat16. They take half the memory.

    With `deferred`, each of the other arrays is read and converted when it is used, and released afterwards
    (`refdiff.arrays.Deferred`). A model of any size then needs the memory of its largest array.

    Without `mapped`, files are read whole, since another process may change them while they are in use.

    The base model's parameters may be stored under any class's prefix. Heads of other classes are passed over, as are
    the `rotary_emb.inv_freq` of old files. A head that is not stored is drawn anew, with one warning. With
    `tie_word_embeddings`, an `lm_head.weight` that is stored and differs from the embeddings is kept beside them,
    with a warning, as in transformers.

    Raises:
        CheckpointError: a file is broken, or does not hold what `config` describes.
        ValueError: `dtype` or `architecture` is none of those known.
    """
    files = open_checkpoint(folder, mapped=mapped)
    wanted = _resolve(files, config, dtype)
    shapes = parameter_shapes(config, architecture)
    places, problems = find_parameters(files, config, architecture)
    if problems:
        label = files[0].label if len(files) == 1 else str(Path(folder))
        raise CheckpointError(f"{label}: {list_problems(problems)}")
    arrays: dict[str, Any] = {}
    for name, (file, tensor) in places.items():
        if stored and _can_stay(name, file.tensors[tensor].dtype, wanted):
            arrays[name] = _read_only(_sixteen_bits(file, tensor))
        elif deferred:
            read = partial(_converted, file, tensor, wanted)
            arrays[name] = Deferred(file.tensors[tensor].shape, compute_dtype(wanted), read)
        else:
            arrays[name] = _converted(file, tensor, wanted)
    remarks = []
    if overflowed := [name for name, place in places.items() if _overflowed(place, wanted, arrays[name])]:
        remarks.append(f"rounded to {wanted}, {', '.join(overflowed)} have infinite values; float32 has more range")
    if _is_tied(config, architecture):
        remarks += _tie(arrays)
    if missing := [name for name in shapes if name not in arrays]:
        _refuse_large(Path(folder), files, {name: shapes[name] for name in missing})
        remarks.append(f"no {' and '.join(missing)} in the files: drawn at random, so train it before you trust it")
        arrays.update(draw(config, ((name, shapes[name]) for name in missing), seed=0, dtype=wanted))
    if remarks:
        warn(f"{folder}: " + "; ".join(remarks))
    order = [*shapes, *(name for name in arrays if name not in shapes)]
    return nest({name: arrays[name] for name in order})


def _refuse_large(folder: Path, files: list[SafetensorsFile], drawn: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `CheckpointError` for more new numbers than the files store: a small config.json could need any memory."""
    count = count_parameters(drawn.values())
    stored = sum(math.prod(tensor.shape) for file in files for tensor in file.tensors.values())
    if count > max(stored, ALWAYS_DRAWN):
        shown = ", ".join(f"{name} of shape {shape}" for name, shape in drawn.items())
        raise CheckpointError(
            f"{folder}: {shown} is not in the files, and {count:,} new numbers are more than the {stored:,} that they "
            "store; is num_labels in config.json right?"
        )


def _can_stay(name: str, stored_dtype: str, dtype: str) -> bool:
    """Return whether a parameter is a factor of `linear` or a table, and has 16 bits that need no rounding."""
    matrix = name.endswith(("_proj.weight", "embed_tokens.weight", "lm_head.weight")) and "lambda_proj" not in name
    return matrix and NBYTES[STORED[stored_dtype]] == 2 and dtype in (STORED[stored_dtype], "float32", "float64")


def _sixteen_bits(file: SafetensorsFile, stored: str) -> NDArray[Any]:
    bits = file.view(stored)
    if STORED[file.tensors[stored].dtype] == "float16":
        return bits.astype(np.float16, copy=False)
    return bits.astype(np.uint16, copy=False).view(bfloat16())


def _converted(file: SafetensorsFile, stored: str, dtype: str) -> NDArray[Any]:
    tensor = file.tensors[stored]

    def done(first: int, last: int) -> None:
        file.release_pages(tensor.begin + first, tensor.begin + last)

    return _read_only(to_compute(file.view(stored), STORED[tensor.dtype], dtype, done))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def resolve_dtype(folder: str | os.PathLike[str], config: DiffLlamaConfig, dtype: str = "auto") -> str:
    """Return the precision that `load` gives: `"float32"`, `"float64"`, `"float16"` or `"bfloat16"`.

    `"auto"`, as in transformers: the one that `config.json` names, and if it names none, that of the first weight
    in the first file.

    Raises:
        CheckpointError: a file is broken.
        ValueError: `dtype` is none of these.
    """
    return _resolve(open_checkpoint(folder), config, dtype)


def nonfinite(params: Mapping[str, Any]) -> dict[str, int]:
    """Count the values of each parameter that are infinite or not a number: name → count, where there are any.

    Reads every value, which for weights on disk means the whole file.
    """
    counts = {}
    for name, array in flatten(params).items():
        flat = to_numpy(array).reshape(-1)
        bad = sum(int(np.count_nonzero(~np.isfinite(flat[i : i + TILE]))) for i in range(0, flat.size, TILE))
        if bad:
            counts[name] = bad
    return counts


def _resolve(files: list[SafetensorsFile], config: DiffLlamaConfig, dtype: str) -> str:
    if dtype not in (*DTYPES, "auto"):
        raise ValueError(f"dtype: got {dtype!r}, expected one of auto, {', '.join(DTYPES)}")
    if dtype != "auto":
        return dtype
    if config.dtype is not None:
        return config.dtype
    stored = (STORED[tensor.dtype] for file in files for tensor in file.tensors.values() if tensor.dtype in STORED)
    return next(stored, "float32")


def _overflowed(place: _Place, dtype: str, array: Any) -> bool:
    """Return whether there are infinite values after rounding to a type of less range."""
    file, stored = place
    order = ("float16", "bfloat16", "float32", "float64")
    if order.index(dtype) >= order.index(STORED[file.tensors[stored].dtype]):
        return False
    values = to_numpy(array)
    extremes = [np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)]  # these pass over NaN
    return bool(np.isinf(extremes).any())


def _is_tied(config: DiffLlamaConfig, architecture: str) -> bool:
    return architecture == "DiffLlamaForCausalLM" and config.tie_word_embeddings


def find_parameters(
    files: list[SafetensorsFile], config: DiffLlamaConfig, architecture: str
) -> tuple[dict[str, _Place], list[str]]:
    """Return where each parameter is, and the problems: parameters that are missing, unknown or of wrong form."""
    count = sum(len(file.tensors) for file in files)
    if count < config.num_hidden_layers:  # and thousands of missing tensors would say no more than this
        return {}, [f"config.json has {config.num_hidden_layers} layers, but there are {count} tensors"]
    shapes = dict(parameter_shapes(config, architecture))
    optional = {name for name in shapes if name in HEAD_PARAMETERS}
    if _is_tied(config, architecture):
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
        optional.add("lm_head.weight")
    places: dict[str, _Place] = {}
    problems: list[str] = []
    for file, stored in ((f, name) for f in files for name in f.tensors):
        name = with_prefix(stored, backbone_prefix(architecture))
        if name not in shapes:
            if name not in HEAD_PARAMETERS and not name.endswith("rotary_emb.inv_freq"):
                kind = stored_architecture(config, architecture)
                problems.append(f"{_where(file, stored)}: no parameter of a {kind} with this config.json")
        elif name in places:
            problems.append(f"{_where(file, stored)}: the same parameter as {_where(*places[name])}")
        else:
            places[name] = file, stored
            problems += _form_problems(file, stored, shapes[name])
    if "lm_head.weight" in places and _is_tied(config, architecture):
        optional.add("model.embed_tokens.weight")  # tied: either of the two serves as both
    problems += [
        f"{show_value(name)} of shape {shape} is missing"
        for name, shape in shapes.items()
        if name not in places and name not in optional
    ]
    if problems:
        problems = [*layer_problems(config, (name for file in files for name in file.tensors)), *problems]
    return {name: places[name] for name in shapes if name in places}, problems


def _where(file: SafetensorsFile, stored: str) -> str:
    return f"{show_value(stored)} in {show_value(Path(file.label).name)}"


def _form_problems(file: SafetensorsFile, stored: str, shape: tuple[int, ...]) -> list[str]:
    tensor = file.tensors[stored]
    problems = []
    if tensor.shape != shape:
        problems.append(
            f"{_where(file, stored)}: shape is {show_value(tensor.shape)}, but config.json makes it {shape}"
        )
    if tensor.dtype not in STORED:
        problems.append(f"{_where(file, stored)}: dtype is {tensor.dtype}, but weights are {', '.join(STORED)}")
    return problems


def _tie(arrays: dict[str, Any]) -> list[str]:
    """Decide how a model with tied embeddings treats a stored `lm_head.weight`; return remarks."""
    head, embeddings = arrays.get("lm_head.weight"), arrays.get("model.embed_tokens.weight")
    if head is None:
        return []
    if embeddings is None:
        arrays["model.embed_tokens.weight"] = arrays.pop("lm_head.weight")
        return []
    one, other = to_numpy(head), to_numpy(embeddings)
    if all(np.array_equal(one[i : i + 1024], other[i : i + 1024]) for i in range(0, len(one), 1024)):
        del arrays["lm_head.weight"]
        return []
    return [
        "config.json ties lm_head.weight to the embeddings, but it is stored with values of its own, which are used; "
        "tie_word_embeddings should be false"
    ]
