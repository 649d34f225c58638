"""One safetensors file: a header that is checked before anything in it is believed, and the numbers as views of a memory map.

The layout (https://github.com/huggingface/safetensors, "Format"): 8 bytes, little-endian, the length N of the header; N bytes of JSON, name →
``{"dtype", "shape", "data_offsets": [begin, end]}``, and optionally ``"__metadata__"``, string → string; then the data, which the tensors cover
from end to end without gap or overlap. The library's own loaders copy every tensor, which for a 5 GB file costs seconds and twice the memory.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.errors import CheckpointError

MAX_JSON = 10_000_000
"""Bytes of the largest header or index that is read. The format allows 100 MB; that much hostile JSON would take gigabytes of objects, and
10 MB name 60,000 tensors, of which a DiffLlama has about 15 a layer."""

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of one number of each type that the format knows."""

_ARRAY_TYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2"}
"""How NumPy views the types that weights have; NumPy has no bfloat16, so it sees the bits."""

_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies in its file: type, shape, and first and last byte, counted from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return self.end - self.begin


def show(name: object) -> str:
    """Return a name from a file fit for a message: quoted, control characters escaped, of bounded length."""
    text = repr(name)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


@contextmanager
def open_regular(path: Path, label: str) -> Iterator[tuple[int, int]]:
    """Open a regular file for reading; yields its descriptor and its size in bytes.

    Opened without blocking: a pipe in a file's place must not hang the reader.
    """
    try:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{label}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{label}: is not a regular file")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def parse_json(raw: bytes, label: str) -> Any:
    """Parse JSON strictly: UTF-8, no key twice, no NaN or Infinity, no nesting that exhausts the stack."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {show(twice)} is there twice")
        return result

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except RecursionError as error:
        raise CheckpointError(f"{label}: the JSON is nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{label}: is not valid JSON: {error}") from error


def read_header(path: Path, label: str) -> tuple[dict[str, Tensor], dict[str, str], int]:
    """Read and check the header of a file; returns its tensors in the order of the data, its metadata, and its size in bytes.

    Reads the header only. ``label`` names the file in messages.

    Raises:
        CheckpointError: The file breaks a rule of the format; the message says which, and names the tensor.
    """
    with open_regular(path, label) as (descriptor, size):
        head = os.read(descriptor, 8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise CheckpointError(f"{label}: {_not_safetensors(head, length, size)}")
        if length > MAX_JSON:
            raise CheckpointError(f"{label}: the header has {length:,} bytes, more than the {MAX_JSON:,} that are read")
        raw = _read(descriptor, length)
    if len(raw) != length:
        raise CheckpointError(f"{label}: ended while its header was being read: is another program writing it?")
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{label}: the header begins with {raw[:1]!r}, not with '{{'")
    header = parse_json(raw, f"{label}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{label}: __metadata__ is not a table of strings")
    tensors = [(name, _tensor(entry, f"{label}: tensor {show(name)}", 8 + length)) for name, entry in header.items()]
    tensors.sort(key=lambda item: (item[1].begin, item[1].end))
    _check_cover(tensors, 8 + length, size, label)
    return dict(tensors), metadata, size


def _read(descriptor: int, length: int) -> bytes:
    pieces = []
    while length > 0 and (piece := os.read(descriptor, length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _not_safetensors(head: bytes, length: int, size: int) -> str:
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return (
            "is a pickle (a torch.save file), not safetensors. Unpickling can run any code, so it is not read; convert the "
            "model with transformers: from_pretrained(...).save_pretrained(...)"
        )
    if head == b"version ":
        return "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if size < 8:
        return f"has {size} bytes; a safetensors file has at least 8. Was the download cut short?"
    return f"the header should have {length:,} bytes, but the file ends after {size:,}: cut short, or not a safetensors file"


def _whole(value: object) -> bool:
    """Say whether a JSON value is a whole number that fits a file size (``True`` is an int to Python, not here)."""
    return type(value) is int and 0 <= value <= _MAX_SIZE


def _tensor(entry: Any, label: str, data: int) -> Tensor:
    if not isinstance(entry, dict) or not entry.keys() >= _FIELDS:
        raise CheckpointError(f"{label}: needs the fields dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{label}: has dtype {show(dtype)}, which the format does not know")
    if not isinstance(shape, list) or not all(map(_whole, shape)):
        raise CheckpointError(f"{label}: has shape {show(shape)}, which is not a list of whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise CheckpointError(f"{label}: has data_offsets {show(offsets)}, which are not two whole numbers")
    bits = BITS[dtype]
    for axis in shape:  # stopping at the first overflow keeps the product small, however long the list is
        bits *= axis
        if bits > _MAX_SIZE:
            raise CheckpointError(f"{label}: the shape {show(shape)} is larger than any file")
    begin, end = offsets
    if bits % 8 or end - begin != bits // 8:
        raise CheckpointError(
            f"{label}: {dtype} of shape {show(tuple(shape))} takes {bits / 8:,.10g} bytes, but data_offsets {show(offsets)} span {end - begin:,}"
        )
    return Tensor(dtype, tuple(shape), data + begin, data + end)


def _check_cover(tensors: list[tuple[str, Tensor]], data: int, size: int, label: str) -> None:
    position = data
    for name, tensor in tensors:
        if tensor.begin != position:
            fault = "overlaps the tensor before it" if tensor.begin < position else "leaves a gap before it"
            raise CheckpointError(
                f"{label}: tensor {show(name)}: {fault}: it starts at byte {tensor.begin - data:,} of the data, "
                f"the one before it ends at {position - data:,}"
            )
        position = tensor.end
    if position != size:
        what = "is cut short" if position > size else "has bytes that belong to no tensor"
        raise CheckpointError(f"{label}: {what}: the header describes {position:,} bytes, the file has {size:,}")


def open_views(path: Path, label: str, tensors: dict[str, Tensor], size: int) -> dict[str, NDArray[Any]]:
    """Map a file and return a read-only view of each tensor; nothing is read from the disk until a view is used.

    Types: float32, float64, float16 in the file's byte order (little-endian), bfloat16 as its bits in uint16.
    The map lives as long as any view of it, also when the file is replaced meanwhile (the old file stays until then).
    """
    with open_regular(path, label) as (descriptor, now):
        if now != size:
            raise CheckpointError(f"{label}: changed from {size:,} to {now:,} bytes while it was being loaded")
        try:
            memory = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{label}: cannot be mapped into memory: {error}") from error
    views = {}
    for name, tensor in tensors.items():
        kind = np.dtype(_ARRAY_TYPES[tensor.dtype])
        flat = np.frombuffer(memory, kind, count=tensor.nbytes // kind.itemsize, offset=tensor.begin)
        views[name] = flat.reshape(tensor.shape)
    return views
