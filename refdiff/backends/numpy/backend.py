"""The backend of NumPy on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from refdiff.backends import Backend, Ops, decoder
from refdiff.backends.numpy import NumpyKernels
from refdiff.backends.numpy.runtime import split_batch

__all__ = ["NumpyBackend", "NumpyKernels"]


class NumpyBackend(Backend):
    """The kernels of one model, and the threads and memory that they share."""

    kernels: NumpyKernels

    def __init__(self, kernels: NumpyKernels) -> None:
        super().__init__(kernels)
        k, self.parallel_calls = kernels, kernels.threads
        self._steps = decoder.Steps(
            self.ops,
            linears=k.linears,
            rope_append=k.rope_append,
            add=k.residual_add,
            gated=k.gated,
            diff_attention_with_lse=k.diff_attention_with_lse,
            diff_attention_vjp_from_lse=k.diff_attention_vjp_from_lse,
        )
        self.diffllama = functools.partial(decoder.diffllama, steps=self._steps)
        self.cross_entropy_and_vjp = k.cross_entropy_both

    def saving_ops(self, ops: Ops) -> Ops:
        """Return the layer functions for one forward and backward pass; see `decoder.saving_ops`."""
        return decoder.saving_ops(self._steps) if ops is self.ops else ops

    def inference_scope(self, weight: Any = None) -> AbstractContextManager[Any]:
        """Own the cores and keep scratch memory for one pass; see `Runtime`."""
        return self.kernels.inference_scope(weight)

    def repeated_scope(self) -> AbstractContextManager[Any]:
        """Keep scratch memory from one pass to the next."""
        return self.kernels.repeated_scope()

    def split_batch(self, batch: int, tokens: int) -> list[slice]:
        """Return the parts of a batch that one training step takes one by one, each in one thread."""
        return split_batch(batch, tokens, self.kernels.runtime.tuning.training_tokens)

    def map(self, work: Callable[[Any], Any], items: Any) -> None:
        """Call `work(item)` for every item, on all threads."""
        self.kernels.runtime.workers.map(work, items)

    def map_in_order(self, work: Callable[[Any], Any], items: Sequence[Any], take: Callable[[Any], Any]) -> None:
        """Call `work(item)` on all threads, and `take(result)` one at a time in the order of the items."""
        self.kernels.runtime.workers.map_in_order(work, items, take)
