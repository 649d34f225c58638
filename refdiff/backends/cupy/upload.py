"""Upload of weights from their memory-mapped file: through two pinned buffers, one filled while one is sent."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array
from refdiff.backends.cupy.tuning import Tuning


class Upload:
    """Copies NumPy arrays to a CUDA device, with a progress bar on a terminal.

    Args:
        total: bytes of all arrays together.
        device: a CuPy device or its number; None is the current one.

    Raises:
        ValueError: `device` is not the current one, on which kernels run.
    """

    def __init__(self, total: int, device: Any = None, tuning: Tuning | None = None) -> None:
        import cupy

        self._cupy, tuning = cupy, tuning or Tuning()
        self._size = tuning.pinned_bytes
        current = int(cupy.cuda.Device())
        if device is not None and int(device) != current:
            raise ValueError(
                f"device is {int(device)}, but kernels run on CuPy's current device, which is {current}: call "
                f"cupy.cuda.Device({int(device)}).use() before, and leave device out"
            )
        self._buffers = [(cupy.cuda.alloc_pinned_memory(self._size), cupy.cuda.Event()) for _ in range(2)]
        self._turn = 0
        self._bar: Any = None
        if total >= tuning.progress_bytes and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc="weights to the device", leave=False)

    def __call__(self, x: NDArray[Any]) -> Array:
        """Return a copy of `x` on the device.

        Raises:
            ValueError: `x` is bfloat16, and CuPy is older than 14.
        """
        cupy = self._cupy
        if x.dtype.name == "bfloat16" and not has_bfloat16(cupy):
            raise ValueError(
                f"weights of bfloat16 cannot stay as they are stored: CuPy {cupy.__version__} has no bfloat16. Install "
                'CuPy 14 or newer, or take weights="expanded", as float32'
            )
        source = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        stream = cupy.cuda.get_current_stream()
        y = cupy.empty(x.shape, dtype=x.dtype)
        for start in range(0, source.size, self._size):
            pinned, sent = self._buffers[self._turn]
            self._turn = 1 - self._turn
            sent.synchronize()  # the previous contents of this buffer have arrived
            piece = source[start : start + self._size]
            np.frombuffer(pinned, np.uint8, piece.size)[:] = piece
            cupy.cuda.runtime.memcpyAsync(
                y.data.ptr + start, pinned.ptr, piece.size, cupy.cuda.runtime.memcpyHostToDevice, stream.ptr
            )
            sent.record(stream)
            if self._bar is not None:
                self._bar.update(piece.size)
        return y

    def close(self) -> None:
        """Wait until all has arrived, and free the buffers."""
        for _, sent in self._buffers:
            sent.synchronize()
        self._buffers = []
        if self._bar is not None:
            self._bar.close()


def has_bfloat16(cupy: Any) -> bool:
    """Return whether this CuPy has bfloat16, as it does since version 14."""
    return int(cupy.__version__.split(".")[0]) >= 14
