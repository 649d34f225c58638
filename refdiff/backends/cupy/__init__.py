"""Fast kernels for CUDA: a layer's name, signature and result, in fewer and larger steps.

A kernel returns `NotImplemented` for what it does not serve; the layer then answers, or raises. Numbers are float32,
float16 or bfloat16, and summed in float32. Weights may be of a 16-bit type where activations are float32.

cuda/*.cu       the kernels, readable by themselves
geometry.py     how work is cut into blocks
device.py       NVRTC, launches, cuBLAS
graph.py        a step's launches recorded as one
sampling.py     from logits to a token
upload.py       weights from their file to the device
"""

from __future__ import annotations

from functools import partial
from typing import Any

from refdiff.backends import decoder
from refdiff.backends.backend import Backend
from refdiff.backends.cupy import attention, gemm, norm, rope, sampling
from refdiff.backends.cupy.decode_step import DecodeStep
from refdiff.backends.cupy.device import Runtime
from refdiff.backends.cupy.sampling import DeviceSampler
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
        self.swiglu = partial(gemm.swiglu, rt)
        self.diff_attention = partial(attention.diff_attention, rt)
        self.diff_attention_vjp = partial(attention.diff_attention_vjp, rt)
        self.diff_heads_hf = partial(attention.diff_heads_hf, rt)
        self.plain_heads = partial(attention.plain_heads, rt)
        self.plain_heads_vjp = partial(attention.plain_heads_vjp, rt)

        # steps of a model that are several layers, and the choice of a token
        self.linears, self.rope_append = partial(gemm.linears, rt), partial(rope.rope_append, rt)
        self.gated = partial(gemm.gated, rt)
        self.choose = partial(sampling.choose, rt)


class CupyBackend(Backend):
    """The backend of CuPy on a CUDA device: the kernels of one model."""

    kernels: CupyKernels

    def __init__(self, kernels: CupyKernels) -> None:
        super().__init__(kernels)
        k, self.chunk_size = kernels, kernels.runtime.tuning.prompt_tokens
        steps = decoder.Steps(self.ops, linears=k.linears, rope_append=k.rope_append, gated=k.gated)
        self.fast_diffllama = partial(decoder.fast_diffllama, steps=steps)
        self.saving_ops = partial(decoder.saving_ops, steps)

    def decode_step(self, model: Any) -> DecodeStep | None:
        """Return the decoding step as one launch, or None where the model rules it out."""
        return DecodeStep.create(model)

    def sampler(self, model: Any, options: Any, processors: Any) -> DeviceSampler | None:
        """Return what chooses tokens on the device, or None where the host must see the logits."""
        return DeviceSampler.create(model, options, processors)
