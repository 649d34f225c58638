"""A checkpoint's folder: which safetensors files belong to it, and which files it may read at all."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.files import check_name
from refdiff.hub.download import INDEX, SINGLE, read_weight_map
from refdiff.messages import list_problems, show_value
from refdiff.model.commit import Identity, identity, read_consistently
from refdiff.model.weights.names import flatten
from refdiff.model.weights.safetensors_file import PICKLE_ADVICE, SafetensorsFile, open_safetensors


def open_checkpoint(folder: str | os.PathLike[str], *, mapped: bool = True) -> list[SafetensorsFile]:
    """Open a checkpoint's safetensors files and check their headers; no tensor data is read, unless `mapped` is
    False.

    One `model.safetensors`, or where there is none the files that `model.safetensors.index.json` lists: the order
    in which transformers looks.

    Raises:
        CheckpointError: There is no safetensors file, the index and the files contradict each other, or a file breaks
            the format.
    """
    return read_consistently(Path(folder), partial(_open_files, Path(folder), mapped))


def _open_files(folder: Path, mapped: bool) -> list[SafetensorsFile]:
    if os.path.lexists(folder / SINGLE):
        return [_open(folder, SINGLE, mapped)]
    if os.path.lexists(folder / INDEX):
        return _open_shards(folder, mapped)
    message = f"{folder}: has neither {SINGLE} nor {INDEX}" if folder.is_dir() else f"{folder}: is not a folder"
    if pickles := sorted(path.name for path in folder.glob("*.bin")):
        message += f". {show_value(pickles[0])} is a pickle: {PICKLE_ADVICE}"
    raise CheckpointError(message)


def headers(folder: str | os.PathLike[str]) -> dict[str, dict[str, tuple[str, tuple[int, ...], int]]]:
    """List what a checkpoint stores: file name → tensor name → (dtype, shape, bytes). No tensor data is read.

    Types have the names of the safetensors format, such as `"F32"` and `"BF16"`; tensors are in the order of their
    data.

    Raises:
        CheckpointError: There is no safetensors file, or one is broken.
    """
    return {
        Path(file.label).name: {name: (t.dtype, t.shape, t.nbytes) for name, t in file.tensors.items()}
        for file in open_checkpoint(folder)
    }


@dataclass(frozen=True)
class Origin:
    """What a model was loaded from: the folder, its files, the options of `load`, and the weights by name."""

    folder: Path
    files: dict[str, Identity | None]
    options: dict[str, Any]
    weights: dict[str, Any]

    def has(self, params: dict[str, Any]) -> bool:
        """Return whether these are the weights that were loaded, which are read-only, and the files are the same."""
        now, then = flatten(params), self.weights
        return (
            now.keys() == then.keys()
            and all(a is then[name] and isinstance(a, np.ndarray) and not a.flags.writeable for name, a in now.items())
            and identities(self.folder) == self.files
        )


def identities(folder: Path) -> dict[str, Identity | None]:
    """Return what changes when weights of a checkpoint are replaced or deleted."""
    return {path.name: identity(path) for path in sorted(folder.glob("*.safetensors"))}


def checksum(params: dict[str, Any]) -> int:
    """Return a checksum of the first numbers of every weight: it tells checkpoints apart, and reads little."""
    found = 0
    for array in flatten(params).values():
        found = zlib.crc32(array.reshape(-1)[:64].tobytes(), found)
    return found


def _open(folder: Path, name: str, mapped: bool) -> SafetensorsFile:
    check_name(folder, name)
    return open_safetensors(folder / name, folder=folder, mapped=mapped)


def _open_shards(folder: Path, mapped: bool) -> list[SafetensorsFile]:
    index, label = folder / INDEX, str(folder / INDEX)
    weight_map = read_weight_map(index)
    names = sorted(set(weight_map.values()))
    if missing := [show_value(name) for name in names if not os.path.lexists(f"{folder}/{name}")]:
        raise CheckpointError(
            f"{label}: {len(missing)} of {len(names)} files are missing: {', '.join(missing[:10])}; "
            "was the download complete?"
        )
    files = [_open(folder, name, mapped) for name in names]
    problems = [
        problem for name, file in zip(names, files, strict=True) for problem in _contradictions(name, file, weight_map)
    ]
    if problems:
        raise CheckpointError(f"{label}: {list_problems(problems)}")
    return files


def _contradictions(name: str, file: SafetensorsFile, weight_map: dict[str, str]) -> list[str]:
    listed = {tensor for tensor, owner in weight_map.items() if owner == name}
    absent = [
        f"{show_value(tensor)} should be in {show_value(name)}, but is not" for tensor in listed - file.tensors.keys()
    ]
    extra = [
        f"{show_value(tensor)} is in {show_value(name)}, but the index "
        + (f"says {show_value(weight_map[tensor])}" if tensor in weight_map else "does not list it")
        for tensor in file.tensors.keys() - listed
    ]
    return sorted(absent) + sorted(extra)
