"""The backward pass of `forward`: a gradient for every input, computed with the layers' VJPs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refdiff.backends import Ops
from refdiff.layers.diff_attention import split_maps, sum_to
from refdiff.layers.plain_heads import concat_heads, split_heads
from refdiff.oracle.inputs import QK_WEIGHTS, VECTORS, is_layer
from refdiff.oracle.inputs.sequences import Inputs, Numpy, Sequence, scatter, sequences
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import (
    Angles,
    AttentionOperands,
    HeadIndices,
    Numbers,
    angles,
    attention_mask,
    attention_operands,
    compute_lambda,
    lambda_init,
    padded_queries,
    preparation_stages,
    preparation_steps,
    prepare_qk,
    query_factor,
    value_heads,
    zero_padded,
)
from refdiff.oracle.truth.forward import (
    broadcast_to_heads,
    differences,
    forward,
    norm_rows,
    normalize,
    normalize_and_scale,
    out_factor,
    project,
    split_norm_rows,
)


def backward(spec: Spec, inputs: Inputs, dout: Numpy, ops: Ops) -> dict[str, Numpy]:
    """Return the gradients of `forward` by the names of the inputs, and that of `lambda_full` if there is a λ.

    Shapes:
        `dout` as the output; each gradient as its input, that of `lambda_full` as λ itself: (), (h,) or (B, h, T)

    Raises:
        ValueError: `dout` has another shape than the output, or is not 0 for padded queries that are not judged; or the
            spec makes a row of the output NaN.
    """
    core = project(spec, inputs, ops)
    B, _, T, _ = core["q"].shape
    shape = (B, T, inputs["o_proj.weight"].shape[0]) if is_layer(inputs) else (B, spec.heads, T, spec.out_dim)
    if dout.shape != shape:
        raise ValueError(f"dout has shape {dout.shape}, but the output has {shape}")
    padded = padded_queries(spec, inputs)
    if padded is not None and np.any(dout != zero_padded(padded, dout)):
        raise ValueError(
            "dout is not 0 for some padded queries, and padded_queries is 'any': gradients would depend on outputs "
            "that are not judged; set dout to 0 in these rows, or padded_queries to 'computed'"
        )
    if not is_layer(inputs):
        return _core_gradients(spec, core, dout, ops)
    flat = concat_heads(forward(spec, core, ops))
    grads: dict[str, Numpy] = {}
    dflat, *parameters = ops.linear_vjp(dout, flat, inputs["o_proj.weight"], inputs.get("o_proj.bias"))
    _store_projection(grads, inputs, "o_proj", parameters)
    grads |= _core_gradients(spec, core, split_heads(dflat, spec.out_dim), ops)
    return _projections_vjp(grads, inputs, ops)


def _projections_vjp(grads: dict[str, Numpy], inputs: Inputs, ops: Ops) -> dict[str, Numpy]:
    """Replace the gradients of q, k, v and of the logits of gate and λ by those of x and the projections."""
    x = inputs["x"]
    P = inputs["x_past"].shape[1] if "x_past" in inputs else 0
    past = np.concatenate([inputs["x_past"], x], axis=1) if P else x
    dx = np.zeros_like(past)
    for name, core in {"q": "q", "k": "k", "v": "v", "gate": "gate_logits", "lambda": "lambda_logits"}.items():
        if core not in grads:
            continue
        g = grads.pop(core)
        g = g if name == "lambda" else np.moveaxis(g, 1, 2)
        tokens, first = (past, 0) if name in ("k", "v") else (x, P)
        g = g.reshape(*tokens.shape[:2], math.prod(g.shape[2:]))
        dtokens, *parameters = ops.linear_vjp(g, tokens, inputs[f"{name}_proj.weight"], inputs.get(f"{name}_proj.bias"))
        dx[:, first:] += dtokens
        _store_projection(grads, inputs, f"{name}_proj", parameters)
    if "x_past" in inputs:
        grads["x_past"] = dx[:, :P]
    return {"x": dx[:, P:], **grads}


def _store_projection(grads: dict[str, Numpy], inputs: Inputs, projection: str, found: list[Any]) -> None:
    for part, g in zip(("weight", "bias"), found, strict=True):
        if f"{projection}.{part}" in inputs:
            grads[f"{projection}.{part}"] = g


def _core_gradients(spec: Spec, core: Inputs, dout: Numpy, ops: Ops) -> dict[str, Numpy]:
    """Return the gradients of core inputs, summed over sequences."""
    lambda_ = compute_lambda(spec, core, ops)
    weights = ("norm_weight", "norm_bias", "sinks", *QK_WEIGHTS)
    names = ("q", "k", "v", "k_pages", "v_pages", "gate_logits", *weights)
    grads = {name: np.zeros_like(core[name]) for name in names if name in core}
    dlambda = np.zeros(lambda_.shape)
    by_token = "lambda_logits" in core or ("lambda_full" in core and core["lambda_full"].ndim == 3)
    for part in sequences(core):
        if part.is_empty:
            continue
        found = _dense_gradients(spec, part.inputs, dout[part.index], ops)
        for name in {"q", "gate_logits"} & set(grads):
            grads[name][part.index] += found[name]
        _add_key_gradients(grads, core, part, found)
        for name in set(weights) & set(grads):
            grads[name] += found[name]
        dlambda[part.index if by_token else ...] += found["lambda"]
    return {**grads, **_lambda_vjp(spec, core, dlambda, ops)}


def _add_key_gradients(grads: dict[str, Numpy], core: Inputs, part: Sequence, found: dict[str, Numpy]) -> None:
    for name, pages in (("k", "k_pages"), ("v", "v_pages")):
        if part.keys is None:
            scatter(grads[pages], found[name], core["block_table"][part.number], int(core["lengths"][part.number]))
        else:
            grads[name][part.batch, :, part.keys] += found[name]


def _lambda_vjp(spec: Spec, core: Inputs, dlambda: Numpy, ops: Ops) -> dict[str, Numpy]:
    """Return the gradient of λ and of the inputs that it is computed from, by name.

    Shapes:
        dlambda as `diff_attention` takes λ
    """
    if spec.lambda_form == "exp":
        init, vectors = lambda_init(spec, ops), [core[name] for name in VECTORS]
        if not spec.lambda_per_head:
            found = ops.diff_lambda_vjp(dlambda, *vectors, init)
        else:
            dlambda = dlambda.reshape(spec.heads)
            per_head = [ops.diff_lambda_vjp(np.asarray(g), *(x[i] for x in vectors), init)
                        for i, g in enumerate(dlambda)]  # fmt: skip
            found = map(np.stack, zip(*per_head, strict=True))
        return {"lambda_full": dlambda, **dict(zip(VECTORS, found, strict=True))}
    if spec.lambda_form == "sigmoid":
        logits = core["lambda_logits"]
        dlogits, _ = ops.diff_lambda_v2_vjp(dlambda, logits, np.eye(logits.shape[2]))
        return {"lambda_full": dlambda[..., 0], "lambda_logits": dlogits}
    if spec.is_plain:
        return {}
    return {"lambda_full": dlambda.reshape(core["lambda_full"].shape)}


def _dense_gradients(spec: Spec, inputs: Inputs, dout: Numpy, ops: Ops) -> dict[str, Numpy]:
    """Return the gradients of a dense problem by name; that of λ is "lambda"."""
    s = attention_operands(spec, inputs, ops)
    some = np.any(s.visible, axis=-1, keepdims=True)
    if spec.masked_rows == "nan" and not some.all():
        raise ValueError("masked_rows='nan' makes the row of a query that sees no key NaN, and so all gradients")
    heads = differences(spec, s, ops)
    factor = out_factor(spec, inputs, ops)
    more: dict[str, Numpy] = {}
    if spec.gate != "none":
        logits = inputs["gate_logits"]
        through_gate = dout * normalize_and_scale(spec, heads, inputs, ops)
        (more["gate_logits"],) = ops.activation_vjp(through_gate, logits, spec.gate)
        dout = dout * ops.activation(logits, spec.gate)
    g, norm_gradients = _norm_vjp(spec, factor * dout, heads, inputs, ops)
    dq1, dk1, dq2, dk2, dv, dlambda = ops.diff_attention_vjp(
        g, s.q1, s.k1, s.q2, s.k2, s.v, s.lambda_full, s.mask, s.bias, causal=s.causal
    )
    sink_gradients = {}
    if spec.sinks:
        sink_gradients = {"sinks": ops.sum_sinks(spec, sink_terms(g, s, ops), g, s)}
        dk1, dk2, dv = dk1[:, :, :-1], dk2[:, :, :-1], dv[:, :, :-1]
    if spec.out_scale == "1 - lambda":
        through_factor = -dout * normalize(spec, heads, inputs, ops)
        dlambda = dlambda + sum_to(np.sum(through_factor, axis=-1, keepdims=True), dlambda.shape)
    if spec.masked_rows == "uniform":  # the scores of a query that sees no key are zeros, whatever q is
        sees = np.any(attention_mask(spec, inputs), axis=-1, keepdims=True)
        dq1, dq2 = np.where(sees, dq1, 0.0), np.where(sees, dq2, 0.0)
    qk_gradients = _qk_vjp(spec, inputs, s, (dq1, dk1, dq2, dk2), ops)
    dv = _values_vjp(spec, inputs["v"], dv, ops)
    return {**qk_gradients, "v": dv, "lambda": dlambda, **norm_gradients, **more, **sink_gradients}


def sink_terms(g: Numpy, s: AttentionOperands, ops: Ops) -> Numpy:
    """Return the terms of the gradients of the sinks of both maps, (2, B, h, T), from g = ∂L/∂(o₁ − λ o₂).

    Equation:
        the value of a sink is 0, so ∂L/∂sink = −Σ_t p ⟨∂L/∂o, o⟩ with the sink's weight p; ∂L/∂o is g for o₁, −λ g
        for o₂
    """
    biases = split_maps(s.bias, s.q1.shape[1])
    v = np.concatenate([s.v, np.zeros((*s.v.shape[:3], 1))], axis=-1)
    v[:, :, -1, -1] = 1.0  # an extra column, whose weighted sum is p
    terms = []
    for q, k, bias, by in ((s.q1, s.k1, biases[0], 1.0), (s.q2, s.k2, biases[1], -s.lambda_full)):
        o = ops.diff_attention(q, k, q, k, v, np.zeros(()), s.mask, bias, causal=s.causal)
        terms.append(-np.sum(by * g * o[..., :-1], axis=-1) * o[..., -1])
    return np.stack(terms)


def _norm_vjp(spec: Spec, g: Numpy, heads: Numpy, inputs: Inputs, ops: Ops) -> tuple[Numpy, dict[str, Numpy]]:
    """Return the gradient of the heads before the norm, and those of the norm's weight and bias by name."""
    found: dict[str, Numpy] = {}
    if spec.norm == "none":
        return g, found
    rows, back = norm_rows(spec, heads, ops)
    weight, inside = inputs.get("norm_weight"), spec.norm_over == "head" and not spec.norm_per_head
    total = ops.sum_over_tokens
    if spec.norm_bias:
        found["norm_bias"] = total(g, "norm_bias", spec.norm_per_head)
    if weight is not None and not inside:
        terms = g * back(ops.rms_norm(rows, None, spec.norm_eps))
        found["norm_weight"] = total(terms, "norm_weight", spec.norm_per_head)
        g = g * broadcast_to_heads(weight)
    drows, dweight = ops.rms_norm_vjp(split_norm_rows(spec, g)[0], rows, weight if inside else None, spec.norm_eps)
    if dweight is not None:
        found["norm_weight"] = dweight
    return back(ops.center(drows) if spec.norm == "layer" else drows), found


def _qk_vjp(
    spec: Spec, inputs: Inputs, s: AttentionOperands, grads: tuple[Numpy, Numpy, Numpy, Numpy], ops: Ops
) -> dict[str, Numpy]:
    """Return the gradients of q and k before norm and RoPE, and of the weights of their norms, by name.

    Args:
        grads: the gradients of q1, k1, q2, k2.
    """
    dq1, dk1, dq2, dk2 = grads
    w: HeadIndices = ops.head_indices(spec)
    q, k = prepare_qk(spec, inputs, ops)
    if spec.softcap is not None:
        q = q * query_factor(spec)
        first, second = (ops.round_at(x / spec.softcap, "qk") for x in (s.q1, s.q2))
        raw_scores_vjp = ops.raw_scores_vjp
        # tanh' = 1 − tanh², by tanh of the forward pass: with rounding, most digits are lost where tanh rounds to 1
        dq1, dk1 = raw_scores_vjp(dq1 * (1 - first**2), q[:, w.q1], k[:, w.k1])
        dq2, dk2 = raw_scores_vjp(dq2 * (1 - second**2), q[:, w.q2], k[:, w.k2])
    dq = query_factor(spec) * (_scatter_heads(dq1, w.q1, q) + _scatter_heads(dq2, w.q2, q))
    dk = _scatter_heads(dk1, w.k1, k) + _scatter_heads(dk2, w.k2, k)
    cos_sin = angles(spec, inputs, ops)
    found: dict[str, Numpy] = {}
    for name, g in (("q", dq), ("k", dk)):
        found |= _preparation_vjp(spec, inputs, name, g, cos_sin, ops)
    return found


def _preparation_vjp(spec: Spec, inputs: Inputs, name: str, g: Numpy, cos_sin: Angles, ops: Ops) -> dict[str, Numpy]:
    """Return the gradients of q or k before `preparation_stages`, and of the weight of its norm, by name."""
    found: dict[str, Numpy] = {}
    steps = preparation_steps(spec)
    before = preparation_stages(spec, inputs, name, cos_sin, ops) if "norm" in steps else [g] * len(steps)
    for step, x in zip(reversed(steps), reversed(before[: len(steps)]), strict=True):
        if step == "rope":
            g = _rotate_vjp(spec, g, *cos_sin[name], ops)
            continue
        weight = inputs.get(f"{name}_norm_weight")
        g, dweight = ops.qk_norm_vjp(g, x, weight, spec.qk_norm_eps, spec.qk_norm)
        if dweight is not None:
            found[f"{name}_norm_weight"] = dweight
    return {name: g, **found}


def _rotate_vjp(spec: Spec, g: Numpy, cos: Numpy, sin: Numpy, ops: Ops) -> Numpy:
    start = spec.head_dim - spec.rotary_dim if spec.rotary_at == "last" else 0
    rotary = g[..., start:]
    rotated: Numpy = ops.rope_vjp(rotary, rotary, cos, sin, interleaved=spec.rope == "interleaved")[0]
    return np.concatenate([g[..., :start], rotated], axis=-1) if start else rotated


def _scatter_heads(g: Numpy, heads: Numbers, like: Numpy) -> Numpy:
    """Return the VJP of `x[:, heads]`."""
    total = np.zeros_like(like)
    np.add.at(np.moveaxis(total, 1, 0), heads, np.moveaxis(g, 1, 0))
    return total


def _values_vjp(spec: Spec, v: Numpy, g: Numpy, ops: Ops) -> Numpy:
    """Return the gradient of v from those of the h joined values."""
    parts = value_heads(spec)
    w: HeadIndices = ops.head_indices(spec)
    groups = _scatter_heads(g, w.v, np.zeros((g.shape[0], spec.key_groups, *g.shape[2:])))
    if spec.values == "halves":
        (dv,) = ops.value_pairs_hf_vjp(groups, v)
        result: Numpy = dv
        return result
    result = np.zeros_like(v)
    for heads, dheads in zip(parts, np.split(groups, len(parts), axis=-1), strict=True):
        result[:, heads] += dheads
    return result
