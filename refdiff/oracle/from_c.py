"""Kernels in C, or in any language that makes a shared library, by the interface in `refdiff_kernel.h`.

A submitted kernel's process runs a copy of this file, without refdiff.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

HEADER = Path(__file__).parent / "refdiff_kernel.h"
"""The header to include."""
DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool")
"""The types in the order of their codes."""
DONE, DECLINED = 0, 1


class _Array(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("dtype", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
    )


def from_c(library: str | os.PathLike[str], symbol: str, *, gradients: bool = False) -> Callable[..., Any]:
    """Return the function of a shared library as a kernel that `check`, `diagnose` and pytest's options take.

    Args:
        library: path of the shared library.
        symbol: name of a function of the type `refdiff_kernel` in `HEADER`.
        gradients: whether it computes gradients: it then gets `dout` among its inputs in calls for gradients, and
            arrays for `dq`, `dk`, … to fill.

    The outputs are out, the log-sum-exps and, with `dout`, the gradients: filled with NaN before the call; what is NaN
    everywhere after it was not computed. Outputs have the type of q, log-sum-exps float32. A layer, which begins with
    x, is declined.

    Raises:
        OSError: the library cannot be loaded.
        ValueError: it has no such function.

    The kernel raises a `RuntimeError` if the function returns an error.
    """
    loaded = ctypes.CDLL(str(Path(library).resolve()))
    try:
        function = loaded[symbol]
    except AttributeError:
        raise ValueError(f'symbol: {os.fspath(library)} has no function {symbol!r}; C++ needs extern "C"') from None
    function.restype = ctypes.c_int32

    def call(spec: Any, inputs: Mapping[str, np.ndarray], dout: np.ndarray | None) -> Any:
        if "x" in inputs:
            return NotImplemented
        B, _, T, _ = inputs["q"].shape
        out = B, spec.heads, T, spec.out_dim
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {"out": (out, inputs["q"].dtype)}
        shapes |= dict.fromkeys(("lse",) if spec.is_plain else ("lse1", "lse2"), (out[:3], np.float32))
        if dout is not None:
            floats = [name for name, x in inputs.items() if x.dtype.kind not in "biu" and name != "bias"]
            shapes |= {f"d{name}": (inputs[name].shape, inputs[name].dtype) for name in floats}
            inputs = {**inputs, "dout": dout}
        outputs = {name: np.full(shape, np.nan, dtype) for name, (shape, dtype) in shapes.items()}
        given, made = ([_array(name, x) for name, x in arrays.items()] for arrays in (inputs, outputs))
        text = json.dumps(spec.to_dict() if hasattr(spec, "to_dict") else vars(spec)).encode()
        status = function(text, (_Array * len(given))(*given), len(given), (_Array * len(made))(*made), len(made))
        if status == DECLINED:
            return NotImplemented
        if status != DONE:
            raise RuntimeError(f"{symbol} returned {status}, expected {DONE}, or {DECLINED} for what it does not serve")
        return {name: x for name, x in outputs.items() if name == "out" or x.size == 0 or not np.isnan(x).all()}

    if gradients:
        return lambda spec, inputs, dout=None: call(spec, inputs, dout)
    return lambda spec, inputs: call(spec, inputs, None)


def _array(name: str, x: np.ndarray) -> _Array:
    if str(x.dtype) not in DTYPES:
        raise TypeError(f"{name}: got dtype {x.dtype}, expected {', '.join(DTYPES)}")
    axes = ctypes.c_int64 * x.ndim
    strides = axes(*(stride // x.itemsize for stride in x.strides))
    return _Array(name.encode(), x.ctypes.data, axes(*x.shape), strides, DTYPES.index(str(x.dtype)), x.ndim)
