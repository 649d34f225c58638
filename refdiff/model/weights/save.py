"""The nested dict of arrays → a folder that transformers loads too, written so that a crash loses nothing.

Everything is written and synced in a hidden folder inside the target; up to here a crash or a full disk leaves the old
checkpoint untouched. Then the files are moved to their places by renaming:

- If only ``model.safetensors`` changes (the same ``config.json``), that is one rename: readers see the old or the new.
- Else the file by which a reader finds the weights, ``model.safetensors`` or the index, is moved away first, and the
  new one comes last. A crash in between leaves a folder without weights, which nobody can mistake for a checkpoint, and
  the other files of both versions in the hidden folder. An error undoes the renames. ``folder.py`` has the reader's
  side.

What belongs to the old weights only is deleted at the end. Renaming leaves the data of the old files alone, so a model
whose arrays are views of them can be saved over itself.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refdiff.files import write_json
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.weights.folder import INDEX, SINGLE, report
from refdiff.model.weights.names import count_parameters, flatten, parameter_shapes, stored_name
from refdiff.model.weights.precision import NBYTES, compute_dtype
from refdiff.model.weights.writing import write_safetensors

_CONFIG = "config.json"
_ENTRIES = (SINGLE, INDEX)
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(KB|MB|GB|TB)\s*", re.IGNORECASE)
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def save(
    directory: str | os.PathLike[str],
    config: DiffLlamaConfig,
    params: Mapping[str, Any],
    architecture: str,
    *,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write ``config.json`` and the weights as transformers' ``save_pretrained`` lays them out.

    Names are transformers', but for the last projection in the wiring ``paper`` (``names.stored_name``). Arrays
    that are ``Deferred`` are made one at a time, when they are written.

    ``dtype`` is the precision in the file; None stores the arrays as they are, float32 or float64. ``max_shard_size``
    is in bytes, or a number with KB, MB, GB or TB (powers of 1000): weights that do not fit are split in
    the order of their names, and a tensor larger than that gets a file to itself. The same input gives the same bytes,
    which are those that transformers writes of a model it has loaded.

    Raises:
        ValueError: ``params`` are not those of ``architecture`` with this ``config``, a value is beyond float16's
            range, or ``dtype`` or ``max_shard_size`` is not understood.
        OSError: Something cannot be written, as on a full disk. The checkpoint that was there is unharmed.
    """
    checked = _checked(flatten(params), config, architecture)
    arrays = {stored_name(name, config.wiring): array for name, array in checked.items()}
    dtype = _widest(arrays) if dtype is None else dtype
    compute_dtype(dtype)  # refuses a dtype that is none
    shards = _split(arrays, dtype, _in_bytes(max_shard_size))
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".refdiff-save-", dir=directory))
        try:
            _write(staging, _described(config, architecture, dtype), arrays, shards, dtype)
            _commit(staging, directory, [*shards, *([INDEX] if len(shards) > 1 else [])])
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        size = count_parameters(array.shape for array in arrays.values()) * NBYTES[dtype]
        raise OSError(
            error.errno,
            f"cannot save the model ({size:,} bytes): {error.strerror or error}; what was there before is unharmed",
            str(directory),
        ) from error


def _checked(arrays: dict[str, Any], config: DiffLlamaConfig, architecture: str) -> dict[str, Any]:
    """Return the arrays in the order of the model; refuse any that do not fit ``config``."""
    shapes = parameter_shapes(config, architecture)
    if architecture == "DiffLlamaForCausalLM" and "lm_head.weight" in arrays:
        # With tied embeddings there can be one all the same; see load().
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    problems = [f"{name} is missing" for name in shapes if name not in arrays]
    problems += [f"{name} is no parameter of it" for name in arrays if name not in shapes]
    problems += [
        f"{name} has shape {tuple(arrays[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    if problems:
        raise ValueError(report(f"these are not the parameters of a {architecture} with this config", problems))
    return {name: arrays[name] for name in shapes}


def _widest(arrays: dict[str, Any]) -> str:
    return "float64" if any("float64" in str(array.dtype) for array in arrays.values()) else "float32"


def _in_bytes(size: int | str) -> int:
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    count = int(float(match[1]) * _UNITS[match[2].upper()]) if match else size
    if isinstance(count, bool) or not isinstance(count, int) or count <= 0:
        raise ValueError(
            f"max_shard_size is {size!r}; it must be a count of bytes or a string such as '5GB' or '200MB'"
        )
    return count


def _split(arrays: dict[str, Any], dtype: str, limit: int) -> dict[str, list[str]]:
    """Share the tensors out over files as transformers does, sorted by name: file name → tensor names."""
    shards: list[list[str]] = []
    current: list[str] = []
    filled = 0
    for name in sorted(arrays, key=_in_layer_order):
        size = count_parameters([arrays[name].shape]) * NBYTES[dtype]
        if size > limit:
            shards.append([name])
            continue
        if filled + size > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(name)
        filled += size
    if current:
        shards.append(current)
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, start=1)}


def _in_layer_order(name: str) -> list[tuple[int, str]]:
    """Sort names by their parts, and layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _described(config: DiffLlamaConfig, architecture: str, dtype: str) -> DiffLlamaConfig:
    described = copy.copy(config)
    # what transformers would build it with: a Llama's classes are named like these, without the Diff
    described.architectures = [architecture.removeprefix("Diff") if config.wiring == "none" else architecture]
    described.dtype = dtype
    return described


def _write(
    staging: Path, config: DiffLlamaConfig, arrays: dict[str, Any], shards: dict[str, list[str]], dtype: str
) -> None:
    config.save_pretrained(staging)
    for file, names in shards.items():
        write_safetensors(staging / file, {name: arrays[name] for name in names}, dtype)
    if len(shards) > 1:
        total = count_parameters(array.shape for array in arrays.values())
        write_json(
            staging / INDEX,
            {
                "metadata": {"total_parameters": total, "total_size": total * NBYTES[dtype]},
                "weight_map": {name: file for file, names in shards.items() for name in names},
            },
        )


def _commit(staging: Path, directory: Path, files: list[str]) -> None:
    """Move the staged files to their places; the last of ``files`` is the one by which readers find the others."""
    if files == [SINGLE] and _same(staging / _CONFIG, directory / _CONFIG):
        (staging / SINGLE).replace(directory / SINGLE)
    else:
        _replace_together(staging, directory, [_CONFIG, *files])
    _sync(directory)
    # The new checkpoint stands; what is left of the old one is in nobody's way, should it resist.
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if path.name not in files and (path.name in _ENTRIES or _SHARD.fullmatch(path.name)):
                path.unlink()


def _replace_together(staging: Path, directory: Path, names: list[str]) -> None:
    aside = staging / "replaced"
    aside.mkdir()
    undo: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        source.replace(target)
        undo.append((target, source))

    try:
        for name in dict.fromkeys([*_ENTRIES, *names]):
            if os.path.lexists(directory / name):
                move(directory / name, aside / name)
                _sync(directory)
        for name in names:
            if name == names[-1]:
                _sync(directory)
            move(staging / name, directory / name)
    except BaseException:
        for target, source in reversed(undo):
            target.replace(source)
        raise


def _same(one: Path, other: Path) -> bool:
    try:
        return one.read_bytes() == other.read_bytes()
    except OSError:
        return False


def _sync(directory: Path) -> None:
    """Make the renames in a folder durable before the next ones, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
