"""A folder on disk → the nested dict of arrays that the model computes with."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refdiff.errors import CheckpointError
from refdiff.model.weights.folder import StoredFile, report, stored_files
from refdiff.model.weights.initialize import draw
from refdiff.model.weights.names import backbone_prefix, is_head, localize, nest, parameter_shapes
from refdiff.model.weights.precision import DTYPES, STORED, to_compute
from refdiff.model.weights.safetensors_file import open_views, show

if TYPE_CHECKING:
    from refdiff.model.config import DiffLlamaConfig


def load(
    folder: str | os.PathLike[str], config: DiffLlamaConfig, architecture: str, *, dtype: str = "auto"
) -> dict[str, Any]:
    """Load a checkpoint as the parameters of ``architecture``: nested dicts of read-only float32 or float64 arrays.

    Where the stored type is the wanted one, the arrays are views of the file, and nothing is read or copied. Names, shapes and types are checked
    first and all problems reported together; values are not (see :func:`refdiff.model.weights.nonfinite`).

    ``dtype``: see :func:`resolve_dtype`. The base model's parameters may be stored with any class's prefix; other classes' heads and
    the ``rotary_emb.inv_freq`` of old files are passed over. A head that the file lacks is drawn anew, with one warning. With
    ``tie_word_embeddings``, a stored ``lm_head.weight`` that differs from the embeddings is kept beside them, as transformers does.

    Raises:
        CheckpointError: A file is broken, or does not hold what ``config`` describes.
        ValueError: ``dtype`` or ``architecture`` is none of those known.
    """
    files = stored_files(folder)
    wanted = _resolve(files, config, dtype)
    shapes = parameter_shapes(config, architecture)
    arrays: dict[str, NDArray[Any]] = {}
    found = _match(Path(folder), files, config, architecture, shapes)
    for file, names in found:
        views = open_views(file.path, file.label, {stored: file.tensors[stored] for stored in names.values()}, file.size)
        for name, stored in names.items():
            array = to_compute(views[stored], STORED[file.tensors[stored].dtype], wanted)
            array.flags.writeable = False
            arrays[name] = array
    _tie(arrays, config, architecture, str(folder))
    missing = [name for name in shapes if name not in arrays]
    if missing:
        warnings.warn(
            f"{folder}: has no {', '.join(missing)}: newly initialized, to be trained before its results mean anything",
            stacklevel=2,
        )
        arrays.update(draw(config, ((name, shapes[name]) for name in missing), seed=0, dtype=wanted))
    order = [*shapes, *(name for name in arrays if name not in shapes)]
    return nest({name: arrays[name] for name in order})


def resolve_dtype(folder: str | os.PathLike[str], config: DiffLlamaConfig, dtype: str = "auto") -> str:
    """Return the precision that :func:`load` gives: ``"float32"``, ``"float64"``, ``"float16"`` or ``"bfloat16"``.

    ``"auto"``, as in transformers: what ``config.json`` says, and if it says nothing, what the first stored tensor has.

    Raises:
        ValueError: ``dtype`` is none of these.
    """
    return _resolve(stored_files(folder), config, dtype)


def _resolve(files: list[StoredFile], config: DiffLlamaConfig, dtype: str) -> str:
    if dtype not in (*DTYPES, "auto"):
        raise ValueError(f"dtype is {dtype!r}; it must be one of auto, {', '.join(DTYPES)}")
    if dtype != "auto":
        return dtype
    if config.dtype is not None:
        if config.dtype not in DTYPES:
            raise CheckpointError(f"config.json: dtype is {show(config.dtype)}; it must be one of {', '.join(DTYPES)}")
        return config.dtype
    stored = (STORED[t.dtype] for file in files for t in file.tensors.values() if t.dtype in STORED)
    return next(stored, "float32")


def _match(
    folder: Path, files: list[StoredFile], config: DiffLlamaConfig, architecture: str, shapes: dict[str, tuple[int, ...]]
) -> list[tuple[StoredFile, dict[str, str]]]:
    """Find each parameter in the files: for every file, parameter name → stored name. Raises one error for all problems."""
    prefix = backbone_prefix(architecture)
    tied = architecture == "DiffLlamaForCausalLM" and config.tie_word_embeddings
    allowed = {**shapes, "lm_head.weight": (config.vocab_size, config.hidden_size)} if tied else shapes
    owner: dict[str, str] = {}
    problems: list[str] = []
    result = []
    for file in files:
        names: dict[str, str] = {}
        for stored, tensor in file.tensors.items():
            name = localize(stored, prefix)
            where = f"{show(stored)} in {Path(file.label).name}"
            if name not in allowed:
                if not is_head(name) and "rotary_emb.inv_freq" not in name:
                    problems.append(f"{where} (shape {tensor.shape}) is no parameter of a {architecture} with this config.json")
            elif name in owner:
                problems.append(f"{where} is the same parameter as {owner[name]}")
            elif tensor.shape != allowed[name]:
                problems.append(f"{where} has shape {tensor.shape}, expected {allowed[name]} from config.json")
            elif tensor.dtype not in STORED:
                problems.append(f"{where} has dtype {tensor.dtype}, expected one of {', '.join(STORED)}")
            else:
                names[name] = stored
            owner.setdefault(name, where)
        result.append((file, names))
    embedding = f"{prefix}embed_tokens.weight"
    for name, shape in shapes.items():
        replaced = tied and name == embedding and "lm_head.weight" in owner
        if name not in owner and not is_head(name) and not replaced:
            problems.append(f"{show(name)} is missing, expected shape {shape}")
    if problems:
        raise CheckpointError(report(str(folder if len(files) > 1 else files[0].label), problems))
    return result


def _tie(arrays: dict[str, NDArray[Any]], config: DiffLlamaConfig, architecture: str, label: str) -> None:
    """Settle what a stored ``lm_head.weight`` means in a model that ties it to the embeddings: drop it if it is equal."""
    if architecture != "DiffLlamaForCausalLM" or not config.tie_word_embeddings or "lm_head.weight" not in arrays:
        return
    head, embedding = arrays["lm_head.weight"], arrays.get("model.embed_tokens.weight")
    if embedding is None:  # the one that is there serves as both
        arrays["model.embed_tokens.weight"] = arrays.pop("lm_head.weight")
    elif all(np.array_equal(head[i : i + 1024], embedding[i : i + 1024]) for i in range(0, len(head), 1024)):
        del arrays["lm_head.weight"]
    else:
        warnings.warn(
            f"{label}: config.json ties lm_head.weight to the embeddings, but the two are stored with different values and both are kept; "
            "set tie_word_embeddings to false to say so",
            stacklevel=3,
        )
