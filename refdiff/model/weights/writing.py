"""Arrays → the bytes of one safetensors file; the format is described in ``safetensors_file.py``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import to_numpy
from refdiff.model.weights.precision import NBYTES, STORED, TILE, encode

_STORED_NAME = {dtype: name for name, dtype in STORED.items()}


def write_safetensors(path: Path, arrays: Mapping[str, Any], dtype: str) -> None:
    """Write arrays of any backend as one file of type ``dtype``, byte for byte as the safetensors library does.

    The data is on the disk when this returns. Goes through it piece by piece: no second copy of the weights is made.

    Raises:
        ValueError: A finite value lies beyond float16's range.
        OSError: The file cannot be written.
    """
    names = sorted(arrays)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        shape = [int(axis) for axis in arrays[name].shape]
        begin, end = end, end + math.prod(shape) * NBYTES[dtype]
        header[name] = {"dtype": _STORED_NAME[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that every tensor starts on its natural boundary
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
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
