"""One safetensors file: read with its header checked and its numbers memory-mapped, and written byte for byte as the
library writes it.

The layout (https://github.com/huggingface/safetensors, "Format"): 8 bytes, little-endian, the length N of the header;
N bytes of JSON, name → `{"dtype", "shape", "data_offsets": [begin, end]}` and optionally `"__metadata__"`,
string → string; then the data, which the tensors cover from end to end without gap or overlap.

The library's own loaders copy every tensor, which for a 5 GB file costs seconds and twice the memory; hence this one.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import to_numpy
from refdiff.errors import CheckpointError
from refdiff.files import open_file, unique_keys
from refdiff.messages import json_problem, show_value
from refdiff.model.weights.precision import STORED, TILE, encode

MAX_HEADER = 10_000_000
"""Bytes of the longest header that is read. The format allows 100 MB, but that much hostile JSON takes gigabytes of
objects; 10 MB name 60,000 tensors, and a DiffLlama has 13 to 17 a layer."""

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of one number of each type that the format knows."""

_ARRAY_TYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2"}
"""How NumPy views the types that weights have: little-endian on every machine; bfloat16, unknown to NumPy, as bits."""

_STORED_NAME = {dtype: name for name, dtype in STORED.items()}
MAX_AXES = 32
"""Axes of the largest shape: what every NumPy holds."""
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_SIZE = 2**63 - 1

PICKLE_ADVICE = (
    "unpickling can run any code, so it is not read; convert the model with transformers: "
    "from_pretrained(...).save_pretrained(...)"
)


@dataclass(frozen=True)
class Tensor:
    """The place of one tensor in its file: type, shape, and its first byte and the one after its last."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return self.end - self.begin


@dataclass(frozen=True)
class SafetensorsFile:
    """An open safetensors file whose header holds no contradiction; `label` is the name used in messages.

    The file is opened once and memory-mapped, or read whole. A file that replaces it under its name changes nothing
    here. Writing into a mapped file changes the tensors, and truncating it lets the system end the process (SIGBUS).
    """

    label: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    memory: mmap.mmap | bytes

    def view(self, name: str) -> NDArray[Any]:
        """Return a float tensor as a read-only view of the file (bfloat16: its bits as uint16); nothing is read yet."""
        tensor = self.tensors[name]
        kind = np.dtype(_ARRAY_TYPES[tensor.dtype])
        flat = np.frombuffer(self.memory, kind, count=tensor.nbytes // kind.itemsize, offset=tensor.begin)
        return flat.reshape(tensor.shape)

    def release_pages(self, begin: int, end: int) -> None:
        """Release the memory of bytes of the file; the system reads them again when they are used.

        Without this, weights that are converted would stay in memory twice.
        """
        # not on Windows, which releases it by itself when memory gets short
        if not isinstance(self.memory, bytes) and hasattr(mmap, "MADV_DONTNEED"):
            begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
            if end > begin:
                self.memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def open_safetensors(path: Path, *, folder: Path | None = None, mapped: bool = True) -> SafetensorsFile:
    """Open a file, check its header against the format and the file's size, and map it; no tensor data is read.

    `folder` is the checkpoint that the file belongs to, if it does (`refdiff.files.open_file`). Without `mapped`, the
    whole file is read into memory at once.

    Raises:
        CheckpointError: the file cannot be opened, or breaks a rule of the format; the message says which, and names
            the tensor.
    """
    label = str(path)
    with open_file(path, folder=folder) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            tensors, metadata = _read_header(file, size, label)
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if mapped else _whole_file(file, size)
        except (OSError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{label}: cannot be read: {error}") from error
    return SafetensorsFile(label, tensors, metadata, memory)


def _whole_file(file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    raw = file.read(size)
    if len(raw) < size:
        raise ValueError(f"has become shorter while it was read: {len(raw):,} of {size:,} bytes")
    return raw


def _read_header(file: BinaryIO, size: int, label: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read and check a header; return the tensors in the order of their data, and the metadata."""
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > size - 8:
        raise CheckpointError(f"{label}: {_not_safetensors(head, length, size)}")
    if length > MAX_HEADER:
        raise CheckpointError(f"{label}: the header has {length:,} bytes, more than the {MAX_HEADER:,} that are read")
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{label}: the header begins with {raw[:1]!r}, not with '{{'")
    header = _parse(raw, label)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{label}: header: __metadata__ is not a table of strings")
    data = 8 + length
    tensors = [(name, _tensor(entry, f"{label}: tensor {show_value(name)}", data)) for name, entry in header.items()]
    tensors.sort(key=lambda item: (item[1].begin, item[1].end))
    _check_cover(tensors, data, size, label)
    return dict(tensors), metadata


def _not_safetensors(head: bytes, length: int, size: int) -> str:
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return f"is a pickle (a torch.save file), not safetensors: {PICKLE_ADVICE}"
    if head == b"version ":
        return "is a git-lfs pointer, not the file itself; fetch it with `git lfs pull`"
    if size < 8:
        return f"has {size} bytes, but a safetensors file has at least 8; was the download cut short?"
    if length > 100_000_000:
        return f"begins with {head!r}, which is no length of a header; not a safetensors file"
    return f"the header should have {length:,} bytes, but the file has {size:,}; cut short, or not a safetensors file"


def _parse(raw: bytes, label: str) -> dict[str, Any]:
    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON number")

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=constant)
        # JSON can spell half a surrogate pair ("\ud800"), which is no text and could not be written to any file.
        "".join(header).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{label}: header: not valid: {json_problem(error)}") from None
    return dict(header)


def _whole(value: object) -> bool:
    """Return whether a JSON value is a whole number that could be a file size (in Python, `True` is an int too)."""
    return type(value) is int and 0 <= value <= _MAX_SIZE


def _tensor(entry: Any, label: str, data: int) -> Tensor:
    if not isinstance(entry, dict) or not entry.keys() >= _FIELDS:
        raise CheckpointError(f"{label}: needs the fields dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{label}: dtype {show_value(dtype)} is not one that the format knows")
    if not isinstance(shape, list) or not all(map(_whole, shape)):
        raise CheckpointError(f"{label}: shape {show_value(shape)} is not a list of whole numbers")
    if len(shape) > MAX_AXES:
        raise CheckpointError(f"{label}: has {len(shape)} axes, expected at most {MAX_AXES}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise CheckpointError(f"{label}: data_offsets {show_value(offsets)} are not two whole numbers")
    bits = BITS[dtype]
    for axis in shape:
        bits *= axis
        if bits > 8 * _MAX_SIZE:
            raise CheckpointError(f"{label}: shape {show_value(shape)} is larger than any file")
    begin, end = offsets
    if bits % 8:
        raise CheckpointError(f"{label}: {dtype} of shape {show_value(tuple(shape))} ends in the middle of a byte")
    if end - begin != bits // 8:
        raise CheckpointError(
            f"{label}: {dtype} of shape {show_value(tuple(shape))} takes {bits // 8:,} bytes, "
            f"but data_offsets {show_value(offsets)} span {end - begin:,}"
        )
    return Tensor(dtype, tuple(shape), data + begin, data + end)


def _check_cover(tensors: list[tuple[str, Tensor]], data: int, size: int, label: str) -> None:
    position = data
    for name, tensor in tensors:
        if tensor.begin != position:
            fault = "overlaps the one before it" if tensor.begin < position else "leaves a gap before it"
            raise CheckpointError(
                f"{label}: tensor {show_value(name)} {fault}: it starts at byte {tensor.begin - data:,} of the data, "
                f"and what precedes it ends at {position - data:,}"
            )
        position = tensor.end
    if position != size:
        fault = "is cut short" if position > size else "has bytes that belong to no tensor"
        raise CheckpointError(f"{label}: {fault}: its header describes {position:,} bytes, and it has {size:,}")


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a file with tensors of these types and shapes, whose bytes follow in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that every tensor starts on its natural boundary
    return len(text).to_bytes(8, "little") + text


def write_safetensors(path: Path, arrays: Mapping[str, Any], dtype: str) -> None:
    """Write arrays of any backend as one file of type `dtype`, byte for byte as the safetensors library does.

    The data is on the disk when this returns. Goes through it piece by piece: no second copy of the weights is made.

    Raises:
        ValueError: a finite value lies beyond float16's range.
        OSError: the file cannot be written.
    """
    names = sorted(arrays)
    tensors = {name: (_STORED_NAME[dtype], tuple(map(int, arrays[name].shape))) for name in names}
    with path.open("wb") as file:
        file.write(header_bytes(tensors, {"format": "pt"}))
        for name in names:
            flat = to_numpy(arrays[name]).reshape(-1)
            for start in range(0, flat.size, TILE):
                tile = flat[start : start + TILE]
                file.write(_encoded(tile, dtype, name).data)
        file.flush()
        os.fsync(file.fileno())


def _encoded(tile: NDArray[Any], dtype: str, name: str) -> NDArray[Any]:
    bits = np.ascontiguousarray(encode(tile, dtype))
    if dtype == "float16" and (np.isinf(bits) & np.isfinite(tile)).any():
        raise ValueError(
            f"{name} has values beyond float16's range of ±65504, which would be saved as infinity; "
            "save as bfloat16 or float32"
        )
    return bits
