"""Differential attention in MLX, on the CPU: two passes of its own attention over each half of V."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from refdiff.oracle import Spec

Arrays = dict[str, np.ndarray]
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def mlx_two_passes(spec: Spec, inputs: Arrays, dout: np.ndarray, dtype: str) -> Arrays:
    """DiffLlama's attention, causal, with as many keys as queries; rotation, attention and norm are MLX's own.

    On a CPU its attention goes op by op: 16-bit scores are stored before the softmax.
    """
    kind = DTYPES[dtype]
    heads = [mx.array(inputs[name].astype(np.float32)).astype(kind) for name in "qkv"]
    q1, k1, q2, k2 = (mx.array(inputs[f"lambda_{name}"].astype(np.float32)) for name in ("q1", "k1", "q2", "k2"))
    start = 0.8 - 0.6 * float(np.exp(-0.3 * spec.layer))
    lambda_ = (mx.exp((q1 * k1).sum()) - mx.exp((q2 * k2).sum()) + start).astype(kind)
    half, d = spec.query_heads // 2, spec.head_dim

    def turned(x: Any) -> Any:
        return mx.fast.rope(x, d, traditional=False, base=spec.rope_theta, scale=1.0, offset=0)

    def whole(q: Any, k: Any, v: Any) -> Any:
        q, k, pairs = turned(q), turned(k), v.shape[1] // 2
        maps = [
            mx.concatenate(
                [
                    mx.fast.scaled_dot_product_attention(a, b, w, scale=d**-0.5, mask="causal")
                    for w in (v[:, :pairs], v[:, pairs:])
                ],
                axis=-1,
            )
            for a, b in ((q[:, :half], k[:, :pairs]), (q[:, half:], k[:, pairs:]))
        ]
        heads = (maps[0] - lambda_ * maps[1]).astype(mx.float32)  # else 1 - start would be rounded to the type of q
        return ((1 - start) * mx.fast.rms_norm(heads, None, spec.norm_eps)).astype(kind)

    outs, grads = mx.vjp(whole, heads, [mx.array(dout.astype(np.float32)).astype(kind)])
    found = dict(zip(("out", "dq", "dk", "dv"), (*outs, *grads), strict=True))
    return {name: np.asarray(x.astype(mx.float32)).astype(np.float64) for name, x in found.items()}
