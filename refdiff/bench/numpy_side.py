"""NumPy's own product, as anyone would write it: what the kernels of `linear` are worth beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.bench.side import FloatArray, ProductSide


class NumpySide(ProductSide):
    """`x @ weight.T` on the threads of NumPy's BLAS, which has GEMV for one token and GEMM for more."""

    def hold(self, weights: list[FloatArray]) -> Callable[[FloatArray], Any]:
        """Multiply into the same room again and again, as ONNX Runtime does."""
        room = np.empty((0, 0), np.float32)

        def multiply(x: FloatArray) -> FloatArray:
            nonlocal room
            if len(room) != len(x):
                room = np.empty((len(x), len(weights[0])), np.float32)
            for weight in weights:
                np.matmul(x, weight.T, out=room)
            return room

        return multiply
