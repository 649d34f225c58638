"""Convert arrays of NumPy, torch, JAX, CuPy, MLX, ml_dtypes or any DLPack library to NumPy; read and write array files.

`refdiff.arrays.to_numpy` does this for the libraries that a model runs on; here it is for kernels of users. No library
is imported that the caller has not imported, and nothing is rounded. safetensors files are read and written, npz files
are read.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, bfloat16
from refdiff.errors import CheckpointError
from refdiff.files import open_file, replace_atomically
from refdiff.model.weights.safetensors_file import header_bytes, open_safetensors

HOST_DEVICES = (1, 3, 11)
"""DLPack devices in host memory: kDLCPU, kDLCUDAHost and kDLROCMHost."""


def any_array(x: Array, name: str = "the array") -> NDArray[Any]:
    """Return `x` as a NumPy array with the same numbers, dtype and shape; `x` itself is not changed.

    Arrays in host memory are not copied, and a view of another library's memory is read-only. bfloat16 becomes
    ml_dtypes' bfloat16. Numbers and nested lists of numbers are accepted too.

    Raises:
        TypeError: `x` is not an array, or has a dtype that NumPy and ml_dtypes lack. The message begins with `name`.
    """
    try:
        found = _convert(x)
    except (TypeError, BufferError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: {_type_name(x)} cannot be read: {error}") from error
    if found.dtype.kind not in "biufc" and not _is_ml_dtype(found.dtype):
        raise TypeError(f"{name}: {_type_name(x)} of dtype {found.dtype} holds no numbers")
    return _to_native_order(found)


def _to_native_order(x: NDArray[Any]) -> NDArray[Any]:
    """Convert to the byte order of this machine: dtypes of the other order have no name such as float32."""
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _convert(x: Any) -> NDArray[Any]:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError("its mask would be lost: fill it first")
    if isinstance(x, np.ndarray | np.generic | int | float | list | tuple):
        return np.asarray(x)
    if array_api_compat.is_cupy_array(x):
        return np.asarray(x.get())
    if array_api_compat.is_jax_array(x):
        jax = sys.modules["jax"]
        try:
            return np.asarray(jax.device_get(x))
        except jax.errors.JaxRuntimeError as error:
            raise RuntimeError(f"the function that computes it failed, as JAX reports only now: {error}") from error
    if type(x).__module__ == "mlx.core":  # on a Mac, its DLPack capsule has a GPU handle and no address
        return _from_mlx(x)
    # torch marks negated and conjugated tensors lazily, which DLPack cannot express
    for make in ("detach", "resolve_conj", "resolve_neg"):
        if hasattr(x, make):
            x = getattr(x, make)()
    if hasattr(x, "__dlpack__"):
        return _from_dlpack(x)
    if hasattr(x, "__array__") or hasattr(x, "__array_interface__"):
        return np.asarray(x)
    try:
        return np.asarray(memoryview(x))
    except TypeError:
        raise TypeError("it is no array: pass one of NumPy, torch, JAX, CuPy, MLX, or with __dlpack__") from None


def _from_dlpack(x: Any) -> NDArray[Any]:
    if int(x.__dlpack_device__()[0]) not in HOST_DEVICES:
        if not hasattr(x, "cpu"):
            raise TypeError(f"it is on DLPack's device {tuple(map(int, x.__dlpack_device__()))}: copy it to the CPU")
        x = x.cpu()
    is_torch = array_api_compat.is_torch_array(x)
    if is_torch and x.dtype.is_floating_point and x.dtype.itemsize == 1:
        known = "float16, bfloat16, float32 or float64"
        raise TypeError(f"got {x.dtype}, expected {known}; pass x.float(), times its scale if it has one")
    is_bfloat16 = is_torch and x.dtype == sys.modules["torch"].bfloat16
    found = np.from_dlpack(x.view(sys.modules["torch"].int16) if is_bfloat16 else x)  # NumPy has no bfloat16
    found.flags.writeable = False
    return found.view(bfloat16()) if is_bfloat16 else found


def _from_mlx(x: Any) -> NDArray[Any]:
    mlx = sys.modules["mlx.core"]
    bits = np.asarray(memoryview(x.view(mlx.uint16) if x.dtype == mlx.bfloat16 else x))
    bits.flags.writeable = False
    return bits.view(bfloat16()) if x.dtype == mlx.bfloat16 else bits


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether this is a floating-point dtype of NumPy or ml_dtypes; ml_dtypes also has small integers."""
    return dtype.kind == "f" or (_is_ml_dtype(dtype) and "float" in dtype.name)


def _is_ml_dtype(dtype: np.dtype[Any]) -> bool:
    return dtype.type.__module__ == "ml_dtypes"


def _type_name(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"


_FILE_TYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
}  # fmt: skip
SMALL_NPZ, MAX_RATIO = 100_000_000, 100
"""Limits of an unzipped npz file, against zip bombs: it may have SMALL_NPZ bytes, or MAX_RATIO times those of the file.
Deflate shortens zeros a thousandfold, random numbers hardly. safetensors files are memory-mapped and have no limit."""
_DTYPE_NAMES = {name: dtype for dtype, name in _FILE_TYPES.items()}
OTHER_SUFFIXES = (".pt", ".pth", ".pkl", ".npy")
"""Suffixes of files of arrays that are not read."""


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write arrays of any library as one safetensors file; see `safetensors_bytes`.

    Raises:
        TypeError: the format has no type for the dtype of an array.
        OSError: the file cannot be written, or `path` is a folder or a device. An older file stays as it was.
    """
    data = safetensors_bytes(arrays, metadata)
    with replace_atomically(path) as file:
        file.writelines(data)


def safetensors_bytes(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> list[bytes]:
    """Return the blocks of a safetensors file, the header and the bytes of each array; dtypes are kept.

    Raises:
        TypeError: the format has no type for the dtype of an array.
    """
    blocks: list[bytes] = []
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    # the widest dtypes first, so that every tensor is aligned to its item size
    found = {name: any_array(array, name) for name, array in arrays.items()}
    for name in sorted(found, key=lambda name: (-found[name].itemsize, name)):
        array = found[name]
        if array.dtype.name not in _FILE_TYPES:
            raise TypeError(f"{name}: safetensors has no type for {array.dtype}; it has {', '.join(_FILE_TYPES)}")
        little = array if array.dtype.name == "bfloat16" else array.astype(array.dtype.newbyteorder("<"), copy=False)
        tensors[name] = _FILE_TYPES[array.dtype.name], array.shape
        blocks.append(little.tobytes())
    return [header_bytes(tensors, metadata), *blocks]


def read_arrays(
    path: str | os.PathLike[str], *, folder: Path | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read a safetensors or npz file: its arrays, read-only with their dtypes, and its metadata (none for npz).

    Args:
        folder: links must not lead out of it; None for a file that the user named (`refdiff.files.open_file`).

    Raises:
        CheckpointError: the file is broken or has another format.
    """
    path = Path(path)
    if path.suffix in OTHER_SUFFIXES:
        raise CheckpointError(
            f"{path}: got a {path.suffix} file, expected .safetensors or .npz; write one with "
            "safetensors.torch.save_file or numpy.savez"
        )
    if path.suffix == ".npz":
        return _read_npz(path, folder), {}
    file = open_safetensors(path, folder=folder)
    arrays = {}
    for name, tensor in file.tensors.items():
        if tensor.dtype not in _DTYPE_NAMES:
            raise CheckpointError(f"{path}: {name}: got type {tensor.dtype}, expected {', '.join(_DTYPE_NAMES)}")
        dtype = _dtype(_DTYPE_NAMES[tensor.dtype])
        flat = np.frombuffer(file.memory, dtype, tensor.nbytes // dtype.itemsize, tensor.begin)
        arrays[name] = flat.reshape(tensor.shape)
    return arrays, file.metadata


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        return bfloat16()
    little: np.dtype[Any] = np.dtype(name).newbyteorder("<")
    return little


def _read_npz(path: Path, folder: Path | None) -> dict[str, NDArray[Any]]:
    with open_file(path, folder=folder) as raw:
        try:
            if not zipfile.is_zipfile(raw):
                raise ValueError("not a zip archive of arrays; write the file with numpy.savez")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as archive:
                entries = archive.zip.infolist()
                if {entry.compress_type for entry in entries} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                    # zipfile unpacks other methods whole, however many bytes they become
                    raise ValueError("got another zip method than stored or deflated; write the file with numpy.savez")
                total, most = (
                    sum(e.file_size for e in entries),
                    max(SMALL_NPZ, MAX_RATIO * os.fstat(raw.fileno()).st_size),
                )
                if total > most:
                    raise ValueError(
                        f"unzipped it has {total:,} bytes, expected at most {most:,}; write it as safetensors"
                    )
                arrays = dict(archive)
        except Exception as error:  # zipfile and NumPy raise errors of many kinds for broken files
            raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    # numpy.savez stores bfloat16 as untyped two-byte items
    two_bytes = np.dtype("V2")
    return {name: x.view(bfloat16()) if x.dtype == two_bytes else _to_native_order(x) for name, x in arrays.items()}
