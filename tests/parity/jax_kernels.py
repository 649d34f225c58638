"""Differential attention in jax, compiled for the CPU: two passes of its own attention, or weights subtracted."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refdiff.oracle import Spec
from refdiff.oracle.truth.attention_operands import attention_mask, head_indices, value_heads

Arrays = dict[str, np.ndarray]
VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def jax_two_passes(spec: Spec, inputs: Arrays, dout: np.ndarray, dtype: str) -> Arrays:
    """unilm's variant: `jax.nn.dot_product_attention` for each map and half of V, then λ, norm and scale.

    Nothing in float16, whose products with sums in float32 jax has not on a CPU ("precision 'F16_F16_F32'").
    """
    if dtype == "float16":
        return {}
    return _run(_two_passes, spec, inputs, dout, dtype)


def jax_weights_subtracted(spec: Spec, inputs: Arrays, dout: np.ndarray, dtype: str) -> Arrays:
    """DiffLlama's variant: both softmaxes in float32, subtracted before one product with V."""
    return _run(_weights_subtracted, spec, inputs, dout, dtype)


def _run(heads: Any, spec: Spec, inputs: Arrays, dout: np.ndarray, dtype: str) -> Arrays:
    q, k, v = (jnp.asarray(inputs[name], dtype=dtype) for name in "qkv")
    see = jnp.asarray(np.broadcast_to(attention_mask(spec, inputs), (1, 1, q.shape[2], k.shape[2])))
    vectors = tuple(jnp.asarray(inputs[name], dtype=jnp.float32) for name in VECTORS)
    weight = None if "norm_weight" not in inputs else jnp.asarray(inputs["norm_weight"], dtype=jnp.float32)
    out, sums, grads = _compiled(heads, spec, q, k, v, see, vectors, weight, jnp.asarray(dout, dtype=dtype))
    found = {"out": out, **dict(zip(("dq", "dk", "dv"), grads, strict=True))}
    if sums is not None and dtype == "float32":  # in the storage type, here: others have float32 for all
        found |= {"lse1": sums[0], "lse2": sums[1]}
    return {name: np.asarray(x).astype(np.float64) for name, x in found.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(heads: Any, spec: Spec, q: Any, k: Any, v: Any, see: Any, vectors: Any, weight: Any, dout: Any) -> Any:
    def whole(q: Any, k: Any, v: Any) -> Any:
        of_rope = [_turned(x, first, spec) for x, first in ((q, k.shape[2] - q.shape[2]), (k, 0))]
        start = 0.8 - 0.6 * float(np.exp(-0.3 * spec.layer))
        lambda_ = jnp.exp(vectors[0] @ vectors[1]) - jnp.exp(vectors[2] @ vectors[3]) + start
        diff, sums = heads(spec, *of_rope, v, see, lambda_.astype(q.dtype))
        wide = diff.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + spec.norm_eps)
        normed = normed if weight is None else normed * weight
        return ((1 - start) * normed).astype(q.dtype), sums

    out, pull, sums = jax.vjp(whole, q, k, v, has_aux=True)
    return out, sums, pull(dout)


def _two_passes(spec: Spec, q: Any, k: Any, v: Any, see: Any, lambda_: Any) -> Any:
    w, d = head_indices(spec), spec.head_dim
    maps, sums = [], []
    for of_q, of_k in ((w.q1, w.k1), (w.q2, w.k2)):
        halves = []
        for half in (v[..., :d], v[..., d:]):
            tokens_first = [jnp.swapaxes(x, 1, 2) for x in (q[:, of_q], k[:, of_k], half[:, w.v])]
            out, lse = jax.nn.dot_product_attention(*tokens_first, mask=see, return_residual=True)
            halves.append(jnp.swapaxes(out, 1, 2))
        maps.append(jnp.concatenate(halves, axis=-1))
        sums.append(jnp.swapaxes(lse, 1, 2))
    return maps[0] - lambda_ * maps[1], sums


def _weights_subtracted(spec: Spec, q: Any, k: Any, v: Any, see: Any, lambda_: Any) -> Any:
    w = head_indices(spec)
    wide = jnp.concatenate([v[:, part] for part in value_heads(spec)], axis=-1)[:, w.v]
    weights = []
    for of_q, of_k in ((w.q1, w.k1), (w.q2, w.k2)):
        z = jnp.einsum("bhtd,bhsd->bhts", q[:, of_q], k[:, of_k], preferred_element_type=jnp.float32)
        z = jnp.where(see, z / np.float32(np.sqrt(spec.head_dim)), -jnp.inf)
        weights.append(jax.nn.softmax(z, axis=-1))
    difference = (weights[0] - lambda_.astype(jnp.float32) * weights[1]).astype(v.dtype)
    return jnp.einsum("bhts,bhse->bhte", difference, wide, preferred_element_type=jnp.float32).astype(v.dtype), None


def _turned(x: Any, first: int, spec: Spec) -> Any:
    d = x.shape[-1]
    turn = 1.0 / spec.rope_theta ** (jnp.arange(0, d, 2, dtype=jnp.float32) / d)
    angles = jnp.arange(first, first + x.shape[2], dtype=jnp.float32)[:, None] * turn
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    wide = x.astype(jnp.float32)
    interleaved = spec.rope == "interleaved"
    a, b = (wide[..., 0::2], wide[..., 1::2]) if interleaved else (wide[..., : d // 2], wide[..., d // 2 :])
    turned = (a * cos - b * sin, b * cos + a * sin)
    y = jnp.stack(turned, axis=-1).reshape(x.shape) if interleaved else jnp.concatenate(turned, axis=-1)
    return y.astype(x.dtype)
