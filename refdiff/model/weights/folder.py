"""A checkpoint's folder: which safetensors files belong to it, and which files it may read at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from refdiff.errors import CheckpointError
from refdiff.model.weights.safetensors_file import (
    MAX_JSON, Tensor, _read, open_regular, parse_json, read_header, show,
)  # fmt: skip

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredFile:
    """One safetensors file of a checkpoint, its header read and checked."""

    path: Path
    label: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    size: int


def inside(folder: Path, name: str) -> Path:
    """Return the real path of a file of a checkpoint, or refuse it because it lies outside the checkpoint's folder.

    The rule: ``name`` is a plain file name, and the file it leads to, all symbolic links followed, lies in the folder itself. One layout is
    allowed to point out of it: in Hugging Face's cache ``snapshots/<revision>/<name>`` is a link to ``blobs/<hash>`` of the same repository.
    A checkpoint that somebody sends can so name no file of its reader.

    Raises:
        CheckpointError: The name has a directory in it, or the link leads elsewhere.
    """
    if name in ("", ".", "..") or any(character in name for character in "/\\:\0"):
        raise CheckpointError(f"{folder}: the file name {show(name)} is not a plain file name in this folder")
    root = Path(os.path.realpath(folder))
    try:
        real = Path(os.path.realpath(root / name))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the file name {show(name)} cannot be used: {error}") from error
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if real.parent not in (root, blobs):
        raise CheckpointError(
            f"{folder / name}: is a link to {real}, outside the checkpoint's folder, and is not followed; "
            "put the file itself (or a hard link to it) into the folder"
        )
    return real


def stored_files(folder: str | os.PathLike[str]) -> list[StoredFile]:
    """Find a checkpoint's safetensors files and check their headers; no tensor data is read.

    One ``model.safetensors`` or, where there is none, the files that ``model.safetensors.index.json`` lists (as transformers chooses).

    Raises:
        CheckpointError: There is no safetensors file, the index and the files contradict each other, or a file breaks the format.
    """
    folder = Path(folder)
    if _exists(folder, SINGLE):
        return [_stored(folder, SINGLE)]
    if not _exists(folder, INDEX):
        raise CheckpointError(_nothing_found(folder))
    return _sharded(folder)


def _exists(folder: Path, name: str) -> bool:
    return os.path.lexists(folder / name)


def _stored(folder: Path, name: str) -> StoredFile:
    label = str(folder / name)
    path = inside(folder, name)
    tensors, metadata, size = read_header(path, label)
    return StoredFile(path, label, tensors, metadata, size)


def _nothing_found(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: is not a folder"
    message = f"{folder}: has neither {SINGLE} nor {INDEX}"
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        message += (
            f". {show(pickles[0])} is a pickle: unpickling can run any code, so it is not read; "
            "convert the model with transformers: from_pretrained(...).save_pretrained(...)"
        )
    return message


def _sharded(folder: Path) -> list[StoredFile]:
    label = str(folder / INDEX)
    with open_regular(inside(folder, INDEX), label) as (descriptor, size):
        if size > MAX_JSON:
            raise CheckpointError(f"{label}: has {size:,} bytes, more than the {MAX_JSON:,} that are read")
        raw = _read(descriptor, size)
    index = parse_json(raw, label)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{label}: needs a table weight_map, tensor → file name")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise CheckpointError(f"{label}: tensor {show(tensor)}: {show(name)} is not the name of a safetensors file")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not _exists_inside(folder, name)]
    if missing:
        shown = ", ".join(show(name) for name in missing[:10])
        raise CheckpointError(f"{label}: {len(missing)} of {len(names)} files are missing: {shown}. Was the download complete?")
    files = [_stored(folder, name) for name in names]
    problems = []
    for name, file in zip(names, files, strict=True):
        listed = {tensor for tensor, owner in weight_map.items() if owner == name}
        problems += [f"{show(tensor)} should be in {name} but is not" for tensor in sorted(listed - file.tensors.keys())]
        problems += [
            f"{show(tensor)} is in {name}, but the index puts it into {show(weight_map.get(tensor))}"
            for tensor in sorted(file.tensors.keys() - listed)
        ]
    if problems:
        raise CheckpointError(report(label, problems))
    return files


def _exists_inside(folder: Path, name: str) -> bool:
    inside(folder, name)
    return _exists(folder, name)


def report(label: str, problems: list[str], limit: int = 20) -> str:
    """Put all problems of a checkpoint into one message, the first ``limit`` of them in full."""
    if len(problems) == 1:
        return f"{label}: {problems[0]}"
    lines = [f"{label}: {len(problems)} problems:", *(f"  {problem}" for problem in problems[:limit])]
    if len(problems) > limit:
        lines.append(f"  and {len(problems) - limit} more")
    return "\n".join(lines)


def headers(folder: str | os.PathLike[str]) -> dict[str, dict[str, tuple[str, tuple[int, ...], int]]]:
    """List what a checkpoint stores: file name → tensor name → (dtype, shape, bytes). No tensor data is read.

    Raises:
        CheckpointError: As :func:`stored_files`.
    """
    return {
        Path(file.label).name: {name: (t.dtype, t.shape, t.nbytes) for name, t in file.tensors.items()}
        for file in stored_files(folder)
    }
