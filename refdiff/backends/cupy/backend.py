"""The backend of CuPy on a CUDA device."""

from __future__ import annotations

import functools
from typing import Any

from refdiff.backends import Backend, Ops, decoder
from refdiff.backends.cupy.decode_step import DecodeStep
from refdiff.backends.cupy.device import SIXTEEN_BITS
from refdiff.backends.cupy.kernels import CupyKernels
from refdiff.backends.cupy.sampling import DeviceSampler

__all__ = ["SIXTEEN_BITS", "CupyBackend", "CupyKernels"]


class CupyBackend(Backend):
    """The kernels of one model."""

    kernels: CupyKernels

    def __init__(self, kernels: CupyKernels) -> None:
        super().__init__(kernels)
        self.chunk_size = kernels.runtime.tuning.prompt_tokens
        k = kernels
        self._steps = decoder.Steps(self.ops, linears=k.linears, rope_append=k.rope_append, gated=k.gated)
        self.diffllama = functools.partial(decoder.diffllama, steps=self._steps)

    def saving_ops(self, ops: Ops) -> Ops:
        """Return the layer functions for one forward and backward pass; see `decoder.saving_ops`."""
        return decoder.saving_ops(self._steps) if ops is self.ops else ops

    def decode_step(self, model: Any) -> DecodeStep | None:
        """Return the decoding step as one launch, or None where the model rules it out."""
        return DecodeStep.of(model)

    def sampler(self, model: Any, options: Any, processors: Any) -> DeviceSampler | None:
        """Return what chooses tokens on the device, or None where the host must see the logits."""
        return DeviceSampler.create(model, options, processors)
