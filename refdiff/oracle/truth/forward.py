"""The forward pass of a spec, computed with the functions of `ops`: the layers, or an overlay of them.

Each output head has queries, keys and values of its own (`attention_operands`), and `diff_attention` computes all of
them. So an overlay of mistakes, rounding or recording acts here as it does in a model.

`operand_tiles` makes tiles of queries, which give the same numbers with less memory for scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refdiff.backends import Ops
from refdiff.layers.plain_heads import concat_heads, split_heads
from refdiff.oracle.inputs import is_layer
from refdiff.oracle.inputs.sequences import Inputs, Numpy, sequences
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import (
    AttentionOperands,
    attention_operands,
    compute_lambda,
    lambda_init,
    padded_queries,
    truth_ops,
    zero_padded,
)

Attend = Callable[[AttentionOperands], Numpy]


def forward(spec: Spec, inputs: Inputs, ops: Ops | None = None, attend: Attend | None = None) -> Numpy:
    """Compute the output of float64 inputs (`as_float64`); rows of padded queries that are not judged are zeros.

    Args:
        attend: as in `differences`.

    Shapes:
        core inputs -> (B, h, T, e); those of a layer -> (B, T, D)
    """
    ops = ops or truth_ops()
    core = project(spec, inputs, ops)
    out = np.zeros(out_shape(spec, core))
    for part in sequences(core):
        heads = normalize_and_scale(spec, _heads(spec, part.inputs, ops, attend), part.inputs, ops)
        out[part.index] = apply_gate(spec, heads, part.inputs, ops)
    return zero_padded(padded_queries(spec, inputs), project_output(out, inputs, ops) if is_layer(inputs) else out)


def out_shape(spec: Spec, core: Inputs) -> tuple[int, int, int, int]:
    """Return (B, h, T, e) for core inputs."""
    B, _, T, _ = core["q"].shape
    return B, spec.heads, T, spec.out_dim


def project(spec: Spec, inputs: Inputs, ops: Ops) -> Inputs:
    """Return core inputs: those of a layer with x projected to q, k, v and the logits of λ and gate; others as is."""
    if not is_layer(inputs):
        return inputs
    x = inputs["x"]
    past = np.concatenate([inputs["x_past"], x], axis=1) if "x_past" in inputs else x
    core = {n: y for n, y in inputs.items() if not n.startswith("x") and "_proj." not in n}
    for name, of, width in (("q", x, spec.head_dim), ("k", past, spec.head_dim), ("v", past, spec.value_dim)):
        y = ops.linear(of, inputs[f"{name}_proj.weight"], inputs.get(f"{name}_proj.bias"))
        core[name] = split_heads(y, width)
    if spec.lambda_form == "sigmoid":
        core["lambda_logits"] = ops.linear(x, inputs["lambda_proj.weight"])
    if spec.gate != "none":
        core["gate_logits"] = split_heads(ops.linear(x, inputs["gate_proj.weight"]), spec.out_dim)
    return core


def project_output(out: Numpy, inputs: Inputs, ops: Ops) -> Numpy:
    """Concatenate the heads and apply `o_proj`: (B, h, T, e) to (B, T, D)."""
    result: Numpy = ops.linear(concat_heads(out), inputs["o_proj.weight"], inputs.get("o_proj.bias"))
    return result


def apply_gate(spec: Spec, heads: Numpy, inputs: Inputs, ops: Ops) -> Numpy:
    """Multiply the scaled heads by a function of the gate's logits: (B, h, T, e) to the same."""
    if spec.gate == "none":
        return heads
    keep = ops.round_if_eager
    product: Numpy = keep(heads, "storage") * keep(ops.activation(inputs["gate_logits"], spec.gate), "storage")
    return product


def _heads(spec: Spec, inputs: Inputs, ops: Ops, attend: Attend | None) -> Numpy:
    """Compute the heads of dense core inputs before the norm, (B, h, T, e), also without keys or queries."""
    if inputs["k"].shape[2] == 0 or 0 in inputs["q"].shape:
        return np.full(out_shape(spec, inputs), math.nan if spec.masked_rows == "nan" else 0.0)
    return differences(spec, attention_operands(spec, inputs, ops), ops, attend)


def differences(spec: Spec, s: AttentionOperands, ops: Ops, attend: Attend | None = None) -> Numpy:
    """Compute the heads before the norm, A₁ V − λ A₂ V: (B, h, T, e).

    Args:
        attend: computes them of tiles of queries; None for `diff_attention` of all at once.
    """
    found = [attend(tile) for tile in operand_tiles(s)] if attend else [attend_by_layer(s, ops)]
    heads = found[0] if len(found) == 1 else np.concatenate(found, axis=2)
    if spec.masked_rows == "nan":
        heads = np.where(np.any(s.visible, axis=-1, keepdims=True), heads, math.nan)
    return heads


def attend_by_layer(s: AttentionOperands, ops: Ops) -> Numpy:
    """Call `diff_attention`."""
    heads: Numpy = ops.diff_attention(s.q1, s.k1, s.q2, s.k2, s.v, s.lambda_full, s.mask, s.bias, causal=s.causal)
    return heads


def normalize_and_scale(spec: Spec, heads: Numpy, inputs: Inputs, ops: Ops) -> Numpy:
    """Apply norm and output scale to the heads: (B, h, T, e) to the same."""
    scaled: Numpy = ops.scale_heads(normalize(spec, heads, inputs, ops), out_factor(spec, inputs, ops))
    return scaled


def out_factor(spec: Spec, inputs: Inputs, ops: Ops) -> Any:
    """Return the factor of the heads after the norm."""
    if spec.out_scale == "1 - lambda":
        return 1 - compute_lambda(spec, inputs, ops)
    if spec.out_scale == "none":
        return 1.0
    start = lambda_init(spec, ops)
    return start if spec.out_scale == "lambda_init" else 1 - start


def normalize(spec: Spec, heads: Numpy, inputs: Inputs, ops: Ops) -> Numpy:
    """Apply the spec's norm to the heads: (B, h, T, e) to the same."""
    if spec.norm == "none":
        return heads
    rows, back = norm_rows(spec, heads, ops)
    weight, bias = inputs.get("norm_weight"), inputs.get("norm_bias")
    inside = spec.norm_over == "head" and not spec.norm_per_head  # the layer multiplies by the weight itself
    y: Numpy = back(ops.rms_norm(rows, weight if inside else None, spec.norm_eps))
    if weight is not None and not inside:
        y = y * broadcast_to_heads(weight)
    return y if bias is None else ops.round_if_eager(y + broadcast_to_heads(bias), "o")


def broadcast_to_heads(x: Numpy) -> Numpy:
    """Reshape a weight or bias, (e,) or (h, e), so that it broadcasts to (B, h, T, e)."""
    return x if x.ndim == 1 else x[:, None]


def norm_rows(spec: Spec, heads: Numpy, ops: Ops) -> tuple[Numpy, Callable[[Numpy], Numpy]]:
    """Return the input rows of RMSNorm, centered for LayerNorm, and the inverse of `split_norm_rows`."""
    rows, back = split_norm_rows(spec, heads)
    return ops.center(rows) if spec.norm == "layer" else rows, back


def split_norm_rows(spec: Spec, heads: Numpy) -> tuple[Numpy, Callable[[Numpy], Numpy]]:
    """Reshape heads so that the norm (of heads, halves or all heads) spans the last axis, and return the inverse."""
    B, h, T, e = heads.shape
    if spec.norm_over == "head":
        return heads, lambda y: y
    if spec.norm_over == "half_head":
        return heads.reshape(B, h, T, 2, e // 2), lambda y: y.reshape(B, h, T, e)
    return concat_heads(heads), lambda y: split_heads(y, e)


TILE_SCORES = 2**18
"""The scores of one map in a tile: 2 MiB in float64, which fit a core's cache. Smaller problems are one tile."""


def operand_tiles(s: AttentionOperands) -> Iterator[AttentionOperands]:
    """Yield the operands of tiles of queries. A causal tile leaves out the keys after its last query."""
    (B, H, T, _), S = s.q1.shape, s.k1.shape[2]
    step = max(1, TILE_SCORES // max(1, B * H * S))
    if step >= T:
        yield s
        return
    for rows in (slice(start, min(start + step, T)) for start in range(0, T, step)):
        end = min(S - T + rows.stop, S) if s.causal else S
        visible = s.visible[:, :, rows, :end]
        yield AttentionOperands(
            *(s.q1[:, :, rows], s.k1[:, :, :end], s.q2[:, :, rows], s.k2[:, :, :end], s.v[:, :, :end]),
            lambda_full=_slice_broadcast(s.lambda_full, rows, slice(None), T, 1),
            bias=_slice_broadcast(s.bias, rows, slice(end), T, S),
            visible=visible,
            mask=visible,
            causal=False,
        )


def _slice_broadcast(x: Any, rows: slice, keys: slice, T: int, S: int) -> Any:
    """Select rows and keys of an array that broadcasts to (…, T, S)."""
    if x is None or x.ndim == 0:
        return x
    if x.ndim > 1 and x.shape[-2] == T:
        x = x[..., rows, :]
    return x[..., keys] if x.shape[-1] == S else x
