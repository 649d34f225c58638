"""A checkpoint's folder: which safetensors files belong to it, and which files it may read at all."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from refdiff.checkpoint_files import INDEX, SINGLE, read_weight_map
from refdiff.errors import CheckpointError, MissingFileError
from refdiff.files import check_name
from refdiff.messages import list_problems, show_value
from refdiff.model.commit import read_consistently
from refdiff.model.weights.safetensors_file import PICKLE_ADVICE, SafetensorsFile, open_safetensors


def open_checkpoint(folder: str | os.PathLike[str], *, mapped: bool = True) -> list[SafetensorsFile]:
    """Open a checkpoint's safetensors files and check their headers; no tensor data is read, unless `mapped` is
    False.

    One `model.safetensors`, or where there is none the files that `model.safetensors.index.json` lists: the order
    in which transformers looks.

    Raises:
        CheckpointError: there is no safetensors file, the index and the files contradict each other, or a file breaks
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
    raise MissingFileError(message)


def headers(folder: str | os.PathLike[str]) -> dict[str, dict[str, tuple[str, tuple[int, ...], int]]]:
    """List what a checkpoint stores: file name → tensor name → (dtype, shape, bytes). No tensor data is read.

    Types have the names of the safetensors format, such as `"F32"` and `"BF16"`; tensors are in the order of their
    data.

    Raises:
        CheckpointError: there is no safetensors file, or one is broken.
    """
    return {
        Path(file.label).name: {name: (t.dtype, t.shape, t.nbytes) for name, t in file.tensors.items()}
        for file in open_checkpoint(folder)
    }


def _open(folder: Path, name: str, mapped: bool) -> SafetensorsFile:
    check_name(folder, name)
    return open_safetensors(folder / name, folder=folder, mapped=mapped)


def _open_shards(folder: Path, mapped: bool) -> list[SafetensorsFile]:
    index, label = folder / INDEX, str(folder / INDEX)
    weight_map = read_weight_map(index)
    names = sorted(set(weight_map.values()))
    if missing := [show_value(name) for name in names if not os.path.lexists(f"{folder}/{name}")]:
        raise MissingFileError(
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
