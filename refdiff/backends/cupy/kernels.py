"""The namespace of the CUDA kernels: a layer's name, signature and result, in fewer and larger steps.

A kernel returns `NotImplemented` for what it does not serve; the layer then answers, or raises. Numbers are float32,
float16 or bfloat16, and summed in float32. Weights may be of a 16-bit type where activations are float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from refdiff.backends.cupy import attention, gemm, mlp, norm, rope, sampling
from refdiff.backends.cupy.graph import GraphError, recordable
from refdiff.backends.cupy.runtime import Runtime
from refdiff.backends.cupy.tuning import Tuning


class CupyKernels:
    """The kernels of one model: each attribute that is named like a layer is its kernel.

    Args:
        device: what compiles and launches; None is the current CUDA device.
        rounded: the 16-bit type of the model's matrices, if it has one: where many rows are multiplied, they are
            rounded to it, in attention too; in float16, what is above 65504 is infinite there, and NaN from there on.
        tuning: other thresholds than those of `Tuning()`.
    """

    def __init__(self, device: Any = None, rounded: str | None = None, tuning: Tuning | None = None) -> None:
        rt = self.runtime = Runtime(device, rounded, tuning)
        self.embedding, self.diff_lambda = partial(norm.embedding, rt), partial(norm.diff_lambda, rt)
        self.linear = partial(gemm.linear, rt)
        self.rms_norm, self.rms_norm_vjp = partial(norm.rms_norm, rt), partial(norm.rms_norm_vjp, rt)
        self.rope = partial(rope.rope, rt)
        self.swiglu = partial(mlp.swiglu, rt)
        self.diff_attention = partial(attention.diff_attention, rt)
        self.diff_attention_vjp = partial(attention.diff_attention_vjp, rt)
        self.diff_heads_hf = partial(attention.diff_heads_hf, rt)
        self.plain_heads = partial(attention.plain_heads, rt)
        self.plain_heads_vjp = partial(attention.plain_heads_vjp, rt)

        # steps of a model that are several layers
        self.linears, self.rope_append = partial(gemm.linears, rt), partial(rope.rope_append, rt)
        self.gated = partial(mlp.gated, rt)

        # a decoding step on the device
        self.choose, self.fill = partial(sampling.choose, rt), rt.device.fill
        self.record, self.refusal, self.counted_by = rt.record, GraphError, rt.counted_by
        self.recordable_steps = partial(recordable, self)
