"""Plain attention by torch (every backend that a CPU has), jax and transformers: real kernels, not of this project.

Each is `kernel(spec, inputs, dout, dtype)` -> out, dq, dk, dv in float64, and lse where the library gives it; nothing
where the library has no such attention.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2_eager
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_eager

from refdiff.oracle import Spec
from refdiff.oracle.truth.attention_operands import attention_mask
from tests.parity.real_kernels import DTYPES, flash_sums

Arrays = dict[str, np.ndarray]

PLAIN_SPECS: dict[str, dict[str, Any]] = {
    "MHA": {"query_heads": 4, "key_heads": 4, "head_dim": 16},
    "GQA": {"query_heads": 12, "key_heads": 3, "head_dim": 16},
    "MQA": {"query_heads": 6, "key_heads": 1, "head_dim": 40, "scale": 0.1},
    "MLA": {"query_heads": 5, "key_heads": 5, "head_dim": 24, "v_head_dim": 16},
    "wide values": {"query_heads": 4, "key_heads": 2, "head_dim": 16, "v_head_dim": 24},
    "window": {"query_heads": 4, "key_heads": 2, "head_dim": 16, "window": 6},
    "both ways": {"query_heads": 4, "key_heads": 2, "head_dim": 32, "causal": "none"},
    "softcap": {"query_heads": 8, "key_heads": 2, "head_dim": 16, "softcap": 3.0},
    "sinks": {"query_heads": 8, "key_heads": 2, "head_dim": 16, "window": 8, "sinks": True},
}


def plain_spec(number: int) -> Spec:
    """One of `PLAIN_SPECS`, in turn."""
    return Spec.preset("attention", **list(PLAIN_SPECS.values())[number % len(PLAIN_SPECS)])


def torch_plain(spec: Spec, inputs: Arrays, dout: np.ndarray, dtype: str, backend: SDPBackend | None) -> Arrays:
    """scaled_dot_product_attention by one backend, or by that which torch chooses; `is_causal` where that says it.

    Flash attention has values as wide as keys, and as many key heads as query heads on a CPU: the narrower are padded
    with zeros, as serving code does for MLA, and heads repeated.
    """
    if spec.softcap is not None or spec.sinks:
        return {}
    q, k, v = _leaves(inputs, dtype)
    heads, see = [q, k, v], _visible(spec, inputs)
    if backend == SDPBackend.FLASH_ATTENTION:
        wide = max(spec.head_dim, spec.value_dim)
        heads = [torch.nn.functional.pad(x, (0, wide - x.shape[-1])) for x in heads]
        heads = [x.repeat_interleave(spec.query_heads // x.shape[1], dim=1) for x in heads]
    T, S = q.shape[2], k.shape[2]
    causal = spec.causal == "bottom_right" and spec.window is None and T == S
    how: dict[str, Any] = {"is_causal": True} if causal else {"attn_mask": see}
    how["scale"] = spec.head_dim**-0.5 if spec.scale is None else spec.scale
    backends = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION] if backend is None else [backend]
    with sdpa_kernel(backends):
        out = torch.nn.functional.scaled_dot_product_attention(*heads, enable_gqa=True, **how)[..., : spec.value_dim]
    found = _pulled_back(out, dout, q, k, v)
    if backend == SDPBackend.FLASH_ATTENTION:
        found["lse"] = flash_sums(heads, see, scale=how["scale"])
    return found


def transformers_eager(spec: Spec, inputs: Arrays, dout: np.ndarray, dtype: str) -> Arrays:
    """The eager attention of Gemma 2, which has a softcap, or of gpt-oss, which has sinks.

    Nothing where the score of a hidden key overflows: it is ∞, which no mask that is added hides, and the row NaN.
    """
    q, k, v = _leaves(inputs, dtype)
    keys = k.detach().double().repeat_interleave(spec.query_heads // spec.key_heads, dim=1)
    raw = (q.detach().double() @ keys.mT).abs().masked_fill(_visible(spec, inputs), 0)
    if raw.max() > torch.finfo(q.dtype).max:
        return {}
    hidden = torch.zeros(_visible(spec, inputs).shape, dtype=q.dtype)
    hidden = hidden.masked_fill(~_visible(spec, inputs), torch.finfo(q.dtype).min)
    module = SimpleNamespace(num_key_value_groups=spec.query_heads // spec.key_heads, training=False)
    scaling = spec.head_dim**-0.5 if spec.scale is None else spec.scale
    if not spec.sinks:
        out, _ = gemma2_eager(module, q, k, v, hidden, scaling=scaling, softcap=spec.softcap)
        return _pulled_back(out.transpose(1, 2), dout, q, k, v)
    module.sinks = torch.as_tensor(inputs["sinks"]).to(q.dtype).requires_grad_()
    out, _ = gpt_oss_eager(module, q, k, v, hidden, scaling=scaling)
    found = _pulled_back(out.transpose(1, 2), dout, q, k, v)
    return {**found, "dsinks": module.sinks.grad.double().numpy()}


def jax_plain(spec: Spec, inputs: Arrays, dout: np.ndarray, dtype: str) -> Arrays:
    """`jax.nn.dot_product_attention`, without softcap, sinks or float16 on a CPU; narrower heads padded with zeros."""
    if dtype == "float16" or spec.softcap is not None or spec.sinks:
        return {}
    q, k, v = (jnp.asarray(inputs[name], dtype=dtype) for name in "qkv")
    causal = spec.causal == "bottom_right" and q.shape[2] == k.shape[2]
    see = None if causal and spec.window is None else jnp.asarray(_visible(spec, inputs).numpy())
    out, sums, grads = _compiled(spec, causal, q, k, v, see, jnp.asarray(dout, dtype=dtype))
    found = {"out": out, **dict(zip(("dq", "dk", "dv"), grads, strict=True))}
    if dtype == "float32":
        found["lse"] = sums
    return {name: np.asarray(x).astype(np.float64) for name, x in found.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(spec: Spec, causal: bool, q: Any, k: Any, v: Any, see: Any, dout: Any) -> Any:
    wide = max(spec.head_dim, spec.value_dim)
    scale = spec.head_dim**-0.5 if spec.scale is None else spec.scale

    def whole(*heads: Any) -> Any:
        padded = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, wide - x.shape[-1]))) for x in heads)
        tokens_first = (jnp.swapaxes(x, 1, 2) for x in padded)
        out, sums = jax.nn.dot_product_attention(
            *tokens_first, mask=see, is_causal=causal, scale=scale, return_residual=True
        )
        return jnp.swapaxes(out, 1, 2)[..., : spec.value_dim], jnp.swapaxes(sums, 1, 2)

    out, pull, sums = jax.vjp(whole, q, k, v, has_aux=True)
    return out, sums, pull(dout)


def _leaves(inputs: Arrays, dtype: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.as_tensor(inputs[name]).to(DTYPES[dtype]).requires_grad_() for name in "qkv")


def _visible(spec: Spec, inputs: Arrays) -> torch.Tensor:
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    return torch.as_tensor(np.broadcast_to(attention_mask(spec, inputs), (1, 1, T, S)).copy())


def _pulled_back(out: torch.Tensor, dout: np.ndarray, *leaves: torch.Tensor) -> Arrays:
    out.backward(torch.as_tensor(dout).to(out.dtype))
    found = {"out": out, **{f"d{name}": x.grad for name, x in zip("qkv", leaves, strict=True)}}
    return {name: x.detach().double().numpy() for name, x in found.items() if x is not None}


PLAIN_KERNELS: dict[str, tuple[str, bool, Any]] = {
    "torch sdpa, its choice": ("attention", False, lambda *x: torch_plain(*x, None)),
    "torch sdpa math, plain": ("attention", False, lambda *x: torch_plain(*x, SDPBackend.MATH)),
    "torch sdpa flash, plain": ("attention", False, lambda *x: torch_plain(*x, SDPBackend.FLASH_ATTENTION)),
    "jax dot_product_attention, plain": ("attention", False, jax_plain),
    "transformers eager, plain": ("attention", True, transformers_eager),
}
"""As `real_kernels.KERNELS`."""
