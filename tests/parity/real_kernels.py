"""Differential attention by implementations that are not of this project: transformers, timm, torch's sdpa, jax, MLX.

Each is `kernel(spec, inputs, dout, dtype)` -> {"out", "dq", "dk", "dv"} in float64, gradients by the library's own
differentiation; and {"lse1", "lse2"} where the library gives them. `python -m tests.oracle.selftest --real` has
them judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.layers.diff_attention import DiffAttention
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DiffLlamaConfig
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaRotaryEmbedding

from refdiff import oracle
from refdiff.oracle import Spec
from refdiff.oracle.truth.attention_operands import attention_mask, head_indices
from tests.parity.jax_kernels import jax_two_passes, jax_weights_subtracted
from tests.parity.mlx_kernels import mlx_two_passes

Arrays = dict[str, np.ndarray]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _numbers(x: torch.Tensor | None) -> np.ndarray:
    return x.detach().to(torch.float64).numpy()


class Given(torch.nn.Module):
    """What stands in for a projection: it gives `x`, whatever it is called with."""

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.x


def diffllama(spec: Spec, implementation: str) -> DiffLlamaAttention:
    """transformers' module of a spec."""
    config = DiffLlamaConfig(
        hidden_size=spec.query_heads * spec.head_dim, num_attention_heads=spec.query_heads, head_dim=spec.head_dim,
        num_key_value_heads=spec.key_heads, rms_norm_eps=spec.norm_eps, num_hidden_layers=spec.layer + 1,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta}, attn_implementation=implementation,
    )  # fmt: skip
    return DiffLlamaAttention(config, spec.layer)


def timm_module(spec: Spec, *, fused: bool) -> DiffAttention:
    """timm's module of a spec."""
    module = DiffAttention(spec.query_heads * spec.head_dim, spec.heads, depth=spec.layer)
    module.fused_attn = fused
    return module


def transformers_diffllama(spec: Spec, inputs: Arrays, dout: np.ndarray, dtype: str, implementation: str) -> Arrays:
    """The attention module between its projections, through which NaN of one head would reach others."""
    kind, (B, H, T, d), K = DTYPES[dtype], inputs["q"].shape, spec.key_heads
    assert inputs["k"].shape[2] == T, "the module has as many keys as queries"
    module = diffllama(spec, implementation).to(kind)
    q, k, v = (torch.as_tensor(inputs[name]).to(kind).transpose(1, 2).flatten(2) for name in ("q", "k", "v"))
    given = {"q": q.requires_grad_(), "k": k.requires_grad_(), "v": v.requires_grad_()}
    for name, x in given.items():
        setattr(module, f"{name}_proj", Given(x))
    module.o_proj = torch.nn.Identity()
    with torch.no_grad():
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            getattr(module, name).copy_(torch.as_tensor(inputs[name]))
    angles = DiffLlamaRotaryEmbedding(module.config)(q, torch.arange(T)[None])
    mask = None
    if implementation == "eager":
        mask = torch.full((T, T), torch.finfo(kind).min, dtype=kind).triu(1)[None, None]
    out, _ = module(torch.zeros_like(q), angles, mask)
    out.backward(torch.as_tensor(np.moveaxis(dout, 1, 2).reshape(B, T, H * d)).to(kind))

    def by_head(x: torch.Tensor | None, heads: int) -> np.ndarray:
        return np.moveaxis(_numbers(x).reshape(B, T, heads, -1), 1, 2)

    grads = {f"d{name}": by_head(x.grad, H if name == "q" else K) for name, x in given.items()}
    return {"out": by_head(out, spec.heads), **grads}


def timm_attention(spec: Spec, inputs: Arrays, dout: np.ndarray, dtype: str, *, fused: bool) -> Arrays:
    """The attention module between its projections, without a mask; its λ and norm in the types that it stores."""
    kind = DTYPES[dtype]
    kernel = oracle.torch.module(timm_module(spec, fused=fused).to(kind), spec)
    given = {
        name: torch.as_tensor(x).to(torch.float32 if name.startswith("lambda_") else kind) for name, x in inputs.items()
    }
    found = kernel(given, dout=torch.as_tensor(dout).to(kind))
    return {name: _numbers(found[name]) for name in ("out", "dq", "dk", "dv")}


def torch_sdpa(spec: Spec, inputs: Arrays, dout: np.ndarray, dtype: str, backend: SDPBackend) -> Arrays:
    """unilm's two passes, each over both halves of V, through one backend of torch's scaled_dot_product_attention."""
    kind, w, d = DTYPES[dtype], head_indices(spec), spec.head_dim
    q, k, v = (torch.as_tensor(inputs[name]).to(kind).requires_grad_() for name in ("q", "k", "v"))
    T, S = q.shape[2], k.shape[2]
    see = torch.as_tensor(np.broadcast_to(attention_mask(spec, inputs), (1, 1, T, S)).copy())
    turned_q, turned_k = _interleaved(q, S - T, spec), _interleaved(k, 0, spec)
    maps = []
    for of_q, of_k in ((w.q1, w.k1), (w.q2, w.k2)):
        halves = []
        for half in (v[..., :d], v[..., d:]):
            with sdpa_kernel([backend]):
                heads = (x.contiguous() for x in (turned_q[:, of_q], turned_k[:, of_k], half[:, w.v]))
                halves.append(torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=see))
        maps.append(torch.cat(halves, dim=-1))
    vectors = [torch.as_tensor(inputs[f"lambda_{n}"]).float() for n in ("q1", "k1", "q2", "k2")]
    start = 0.8 - 0.6 * float(np.exp(-0.3 * spec.layer))
    lambda_ = (vectors[0] @ vectors[1]).exp() - (vectors[2] @ vectors[3]).exp() + start
    heads = maps[0] - lambda_.to(kind) * maps[1]
    wide = heads.float()
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + spec.norm_eps)).to(kind)
    out = (1 - start) * (normed * torch.as_tensor(inputs["norm_weight"]).to(kind))
    out.backward(torch.as_tensor(dout).to(kind))
    found = {"out": _numbers(out), "dq": _numbers(q.grad), "dk": _numbers(k.grad), "dv": _numbers(v.grad)}
    if backend == SDPBackend.FLASH_ATTENTION:
        for number, (of_q, of_k) in enumerate(((w.q1, w.k1), (w.q2, w.k2)), start=1):
            found[f"lse{number}"] = flash_sums((turned_q[:, of_q], turned_k[:, of_k], v[:, w.v, :, :d]), see)
    return found


def flash_sums(heads: Sequence[torch.Tensor], see: torch.Tensor, **how: float) -> np.ndarray:
    """The log-sum-exps of torch's flash attention on a CPU."""
    bias = torch.zeros(see.shape, dtype=heads[0].dtype).masked_fill(~see, -torch.inf)
    contiguous = (x.detach().contiguous() for x in heads)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return _numbers(flash(*contiguous, 0.0, False, attn_mask=bias, **how)[1])


def _interleaved(x: torch.Tensor, first: int, spec: Spec) -> torch.Tensor:
    d = x.shape[-1]
    turn = 1.0 / spec.rope_theta ** (torch.arange(0, d, 2).float() / d)
    angles = torch.arange(first, first + x.shape[2]).float()[:, None] * turn
    a, b = x[..., 0::2].float(), x[..., 1::2].float()
    turned = torch.stack([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)
    return turned.flatten(-2).to(x.dtype)


KERNELS: dict[str, tuple[str, bool, Any]] = {
    "transformers eager": ("hf_diffllama", True, lambda *x: transformers_diffllama(*x, "eager")),
    "transformers sdpa": ("hf_diffllama", False, lambda *x: transformers_diffllama(*x, "sdpa")),
    "torch sdpa math": ("ms_v1", False, lambda *x: torch_sdpa(*x, SDPBackend.MATH)),
    "torch sdpa flash": ("ms_v1", False, lambda *x: torch_sdpa(*x, SDPBackend.FLASH_ATTENTION)),
    "timm": ("timm", True, partial(timm_attention, fused=False)),
    "timm, fused": ("timm", False, partial(timm_attention, fused=True)),
    "jax dot_product_attention": ("ms_v1", False, jax_two_passes),
    "jax weights subtracted": ("hf_diffllama", False, jax_weights_subtracted),
    "mlx": ("hf_diffllama", True, mlx_two_passes),
}
"""By name: the preset, whether every operation's result is stored, and the function."""
NOT_SERVED = {("jax dot_product_attention", "float16")}
