"""Named arrays of any types in one file: safetensors, written and read; npz, read."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, bfloat16
from refdiff.errors import CheckpointError
from refdiff.files import open_file, replaced_atomically
from refdiff.memory import physical_memory
from refdiff.messages import show_name
from refdiff.model.weights.safetensors_file import open_safetensors
from refdiff.oracle.inputs.any_array import any_array

_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
}  # fmt: skip
SMALL_NPZ, MAX_RATIO = 100_000_000, 100
"""Bytes that the arrays of an npz file may have, or times its own, up to a quarter of the memory. Deflate makes zeros a
thousand times shorter, and random numbers hardly. Safetensors files are mapped, and have no limit."""
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write arrays of any library as one safetensors file; see `safetensors_bytes`.

    Raises:
        TypeError: an array of a type that the format has not.
        OSError: the file cannot be written, or `path` is a folder or a device; what was there before still is.
    """
    data = safetensors_bytes(arrays, metadata)
    with replaced_atomically(path) as file:
        file.writelines(data)


def safetensors_bytes(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> list[bytes]:
    """Return a safetensors file of arrays of any library, each in its own type: the header and each array's bytes.

    Raises:
        TypeError: an array of a type that the format has not.
    """
    blocks: list[bytes] = []
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    # the widest types first, so that every tensor starts on its natural boundary
    found = {name: any_array(array, name) for name, array in arrays.items()}
    for name in sorted(found, key=lambda name: (-found[name].itemsize, name)):
        array = found[name]
        if array.dtype.name not in _NAMES:
            raise TypeError(f"{name}: safetensors has no type for {array.dtype}; it has {', '.join(_NAMES)}")
        little = array if array.dtype.name == "bfloat16" else array.astype(array.dtype.newbyteorder("<"), copy=False)
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": [begin, end]}
        blocks.append(little.tobytes())
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *blocks]


def read_arrays(
    path: str | os.PathLike[str], *, folder: Path | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read a safetensors or npz file: its arrays, read-only and in their types, and the metadata (of npz: none).

    `folder` is what links may not lead out of; None for a file that the user named (`refdiff.files.open_file`).

    Raises:
        CheckpointError: the file is broken, or of another kind.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".pkl", ".npy"):
        raise CheckpointError(
            f"{path}: arrays by name are read from .safetensors and .npz: write them with safetensors.torch.save_file "
            "or numpy.savez"
        )
    if path.suffix == ".npz":
        return _read_npz(path, folder), {}
    file = open_safetensors(path, folder=folder)
    arrays = {}
    for name, tensor in file.tensors.items():
        if tensor.dtype not in _TYPES:
            raise CheckpointError(f"{path}: {name} has type {tensor.dtype}; what is read is {', '.join(_TYPES)}")
        dtype = _dtype(_TYPES[tensor.dtype])
        flat = np.frombuffer(file.memory, dtype, tensor.nbytes // dtype.itemsize, tensor.begin)
        arrays[name] = flat.reshape(tensor.shape)
    return arrays, file.metadata


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        return bfloat16()
    little: np.dtype[Any] = np.dtype(name).newbyteorder("<")
    return little


def _read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    """Read one array, of as many bytes as its member of the archive has after the header."""
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(member)
        said, has = math.prod(shape) * dtype.itemsize, entry.file_size - member.tell()
    if not dtype.hasobject and said != has:
        raise ValueError(f"{show_name(entry.filename)}: should have {said:,} bytes, but has {has:,}; write it again")
    with archive.open(entry) as member:
        array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _read_npz(path: Path, folder: Path | None) -> dict[str, NDArray[Any]]:
    with open_file(path, folder=folder) as raw:
        try:
            with zipfile.ZipFile(raw) as archive:
                entries = archive.infolist()
                total = sum(entry.file_size for entry in entries)
                most = max(SMALL_NPZ, min(MAX_RATIO * os.fstat(raw.fileno()).st_size, physical_memory() // 4))
                if total > most:
                    raise ValueError(
                        f"unzipped it has {total:,} bytes, expected at most {most:,}; write it as safetensors"
                    )
                arrays = {entry.filename.removesuffix(".npy"): _read_member(archive, entry) for entry in entries}
        except Exception as error:  # zipfile and NumPy raise errors of many kinds for broken files
            raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for name, array in arrays.items():
        # NumPy writes bfloat16 as two bytes of no type
        arrays[name] = array.view(_dtype("bfloat16")) if array.dtype == np.dtype("V2") else array
    return arrays
