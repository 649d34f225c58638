"""Products with weights in their own type, few rows in linear.cu, many by cuBLAS; and SwiGLU, three of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refdiff.arrays import Array, namespace
from refdiff.backends.cupy.device import NUMBERS, Runtime, contiguous
from refdiff.layers.activation import ACTIVATIONS, silu

LINEAR_WEIGHTS = 3
"""How many weights linear.cu takes: those of queries, keys and values."""


def linear(rt: Runtime, x: Array, weight: Array, bias: Array | None = None) -> Any:
    """Multiply with a weight in its own type: few rows in float32, many rounded to it and by cuBLAS."""
    results = linears(rt, x, {"weight": weight, "bias": bias})
    return results if results is NotImplemented else results[0]


def linears(rt: Runtime, x: Array, *projections: Mapping[str, Any]) -> Any:
    """Multiply x by several weights, x Wᵀ + b each; many rows of x are rounded once for all weights of a type.

    Shapes:
        x (..., inputs), weights (outputs, inputs), biases (outputs,) or None or missing -> list of (..., outputs) in
        float32; NotImplemented where one of them does not fit.
    """
    if not all(_fits(x, **p) for p in projections):
        return NotImplemented
    xp, flat = namespace(x), _flat(x)
    rounded = {"float32": flat}
    readable = [_readable(**p) for p in projections]
    if flat.shape[0] <= rt.tuning.few_rows:
        results = _few_rows(rt, flat, readable)
    else:
        results = []
        for weight, bias in readable:
            kind = weight.dtype.name
            if kind not in rounded:
                rounded[kind] = xp.astype(flat, weight.dtype)
            y = rt.device.product(rounded[kind], weight)
            results.append(y if bias is None else y + bias)
    return [xp.reshape(y, (*x.shape[:-1], y.shape[-1])) for y in results]


def swiglu(
    rt: Runtime,
    x: Array,
    gate_proj: Mapping[str, Array],
    up_proj: Mapping[str, Array],
    down_proj: Mapping[str, Array],
    act_fn: Mapping[str, Array] | None = None,
    *,
    act: str = "silu",
) -> Any:
    """Multiply silu(gate) and up in one launch; of few rows, together with their products."""
    if ACTIVATIONS.get(act) is not silu or x.dtype.name not in NUMBERS or x.size == 0:
        return NotImplemented
    if gate_proj["weight"].shape != up_proj["weight"].shape:
        return NotImplemented
    hidden = _gated_few(rt, x, gate_proj, up_proj)
    if hidden is NotImplemented:
        both = linears(rt, x, gate_proj, up_proj)
        if both is NotImplemented:
            return NotImplemented
        hidden = gated(rt, *both)
    return linear(rt, hidden, **down_proj)


def gated(rt: Runtime, gate: Array, up: Array) -> Array:
    """Compute silu(gate) ⊙ up in one launch."""
    gate, up = contiguous(gate), contiguous(up)
    hidden = rt.device.empty(gate.shape, gate.dtype)
    blocks = min(-(-gate.size // 256), 32 * rt.device.multiprocessors)
    rt.device.launch(
        "gated.cu", "gated", {"NUMBER": NUMBERS[gate.dtype.name]}, (blocks, 1, 1), 256,
        (gate, up, hidden, np.int64(gate.size)),
    )  # fmt: skip
    return hidden


def _gated_few(rt: Runtime, x: Array, gate_proj: Mapping[str, Any], up_proj: Mapping[str, Any]) -> Any:
    """Multiply few rows of x by two weights, and silu(gate) by up, in one launch.

    Shapes:
        x (..., inputs), weights (outputs, inputs) of one type, with or without biases -> (..., outputs) in float32;
        NotImplemented where they do not fit, or there are more than `Tuning.few_rows` rows.
    """
    if not all(_fits(x, **p) for p in (gate_proj, up_proj)) or x.size > rt.tuning.few_rows * x.shape[-1]:
        return NotImplemented
    (gate, gate_bias), (up, up_bias) = _readable(**gate_proj), _readable(**up_proj)
    if gate.dtype != up.dtype or gate.shape != up.shape:
        return NotImplemented
    flat = _flat(x)
    (N, inputs), outputs, rows = flat.shape, gate.shape[0], _rows_at_once(flat)
    y = rt.device.empty((*x.shape[:-1], outputs), np.float32)
    rt.device.launch(
        "linear.cu", "gated_linear", {"NUMBER": "float", "WEIGHT": NUMBERS[gate.dtype.name], "ROWS": rows},
        (-(-outputs // 8) * -(-N // rows), 1, 1), 256,
        (flat, gate, gate_bias, up, up_bias, y, np.int32(N), np.int32(outputs), np.int32(inputs)),
    )  # fmt: skip
    return y


def _fits(x: Array, weight: Array, bias: Array | None = None) -> bool:
    """Return whether there is a way to multiply these."""
    if weight.dtype.name not in NUMBERS or x.dtype.name != "float32" or weight.ndim != 2 or x.ndim < 1:
        return False
    if x.shape[-1] != weight.shape[1] or x.size == 0:
        return False
    return bias is None or bias.shape == weight.shape[:1]


def _flat(x: Array) -> Array:
    """View x (..., inputs) as rows (N, inputs) in one piece; a copy where it has gaps."""
    return contiguous(namespace(x).reshape(x, (-1, x.shape[-1])))


def _readable(weight: Array, bias: Array | None = None) -> tuple[Array, Array | None]:
    """Return a weight in one piece, and its bias in float32."""
    xp = namespace(weight)
    return contiguous(weight), None if bias is None else xp.astype(bias, xp.float32, copy=False)


def _rows_at_once(flat: Array) -> int:
    """Return how many rows of x a warp takes, a power of two up to 8."""
    rows = 1
    while rows < min(flat.shape[0], 8):
        rows *= 2
    return rows


def _few_rows(rt: Runtime, flat: Array, projections: list[tuple[Array, Array | None]]) -> list[Array]:
    """Multiply rows (N, inputs) without rounding them, by `LINEAR_WEIGHTS` weights of a type in one launch."""
    (N, inputs), rows = flat.shape, _rows_at_once(flat)
    results = [rt.device.empty((N, weight.shape[0]), np.float32) for weight, _ in projections]
    for kind in dict.fromkeys(weight.dtype.name for weight, _ in projections):
        operands = [
            (weight, bias, y, np.int32(weight.shape[0]))
            for (weight, bias), y in zip(projections, results, strict=True)
            if weight.dtype.name == kind
        ]
        for i in range(0, len(operands), LINEAR_WEIGHTS):
            chunk = operands[i : i + LINEAR_WEIGHTS]
            outputs = sum(int(part[-1]) for part in chunk)
            chunk += [(None, None, None, np.int32(0))] * (LINEAR_WEIGHTS - len(chunk))
            rt.device.launch(
                "linear.cu", "linear", {"NUMBER": "float", "WEIGHT": NUMBERS[kind], "ROWS": rows},
                (-(-outputs // 8) * -(-N // rows), 1, 1), 256,
                (flat, *(x for part in chunk for x in part), np.int32(N), np.int32(inputs)),
            )  # fmt: skip
    return results
