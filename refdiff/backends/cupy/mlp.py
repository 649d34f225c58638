"""The feed-forward network on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refdiff.arrays import Array
from refdiff.backends.cupy.device import NUMBERS, gaps
from refdiff.backends.cupy.gemm import gated_few, linear, linears
from refdiff.backends.cupy.runtime import Runtime
from refdiff.layers.activation import ACTIVATIONS, silu


def swiglu(
    rt: Runtime,
    x: Array,
    gate_proj: Mapping[str, Array],
    up_proj: Mapping[str, Array],
    down_proj: Mapping[str, Array],
    *,
    act: str = "silu",
) -> Any:
    """Multiply silu(gate) and up in one launch; of few rows, together with their products."""
    if ACTIVATIONS.get(act) is not silu or x.dtype.name not in NUMBERS or x.size == 0:
        return NotImplemented
    hidden = gated_few(rt, x, gate_proj, up_proj)
    if hidden is NotImplemented:
        both = linears(rt, x, gate_proj, up_proj)
        if both is NotImplemented:
            return NotImplemented
        hidden = gated(rt, *both)
    return linear(rt, hidden, **down_proj)


def gated(rt: Runtime, gate: Array, up: Array) -> Array:
    """Compute silu(gate) ⊙ up in one launch."""
    gate, up = (y.copy(order="C") if gaps(y) else y for y in (gate, up))
    hidden = rt.device.empty(gate.shape, gate.dtype)
    blocks = min(-(-gate.size // 256), 32 * rt.device.multiprocessors)
    rt.device.launch(
        "gated.cu", "gated", {"NUMBER": NUMBERS[gate.dtype.name]}, (blocks, 1, 1), 256,
        (gate, up, hidden, np.int64(gate.size)),
    )  # fmt: skip
    return hidden
