"""Fast kernels for NumPy: the name and signature of a layer, the same result, less time and memory.

A kernel returns `NotImplemented` for what it does not serve, errors included; the layer then answers, or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np

from refdiff.backends import decoder
from refdiff.backends.backend import Backend
from refdiff.backends.numpy import attention, attention_vjp, gemm, mlp, norm, rope, vocabulary
from refdiff.backends.numpy.layout import FloatArray, same_dtype
from refdiff.backends.numpy.runtime import Runtime
from refdiff.backends.numpy.tuning import Tuning


class NumpyKernels:
    """The kernels of one model: each attribute that is named like a layer is its kernel.

    Args:
        threads: how many; None is all cores, or what BLAS is told, see `Workers`.
        tuning: other thresholds than those of `Tuning()`.

    Raises:
        ValueError: `threads` is below 1.
    """

    def __init__(self, threads: int | None = None, tuning: Tuning | None = None) -> None:
        rt = self.runtime = Runtime(threads, tuning)
        self.threads = rt.workers.threads
        self.inference_scope, self.repeated_scope = rt.inference_scope, rt.repeated_scope

        self.embedding, self.embedding_vjp = partial(vocabulary.embedding, rt), partial(vocabulary.embedding_vjp, rt)
        self.linear, self.linear_vjp = partial(gemm.linear, rt), partial(gemm.linear_vjp, rt)
        self.rms_norm, self.rms_norm_vjp = partial(norm.rms_norm, rt), partial(norm.rms_norm_vjp, rt)
        self.rope, self.rope_vjp = partial(rope.rope, rt), partial(rope.rope_vjp, rt)
        self.activation = partial(mlp.activation, rt)
        self.swiglu = partial(mlp.swiglu, rt)
        self.swiglu_vjp = partial(mlp.swiglu_vjp, rt)
        self.diff_lambda = diff_lambda
        self.diff_attention = partial(attention.diff_attention, rt)
        self.diff_attention_vjp = partial(attention_vjp.diff_attention_vjp, rt)
        self.diff_heads_hf = partial(attention.diff_heads_hf, rt)
        self.plain_heads = partial(attention.plain_heads, rt)
        self.plain_heads_vjp = partial(attention_vjp.plain_heads_vjp, rt)
        self.cross_entropy = partial(vocabulary.cross_entropy, rt)
        self.cross_entropy_vjp = partial(vocabulary.cross_entropy_vjp, rt)

        # steps of a model that are a sum or several layers
        self.linears = partial(gemm.linears, rt)
        self.residual_add = partial(norm.residual_add, rt)
        self.rope_append = partial(rope.rope_append, rt)
        self.gated = partial(mlp.gated, rt)
        self.diff_attention_with_lse = partial(attention.diff_attention_with_lse, rt)
        self.cross_entropy_and_vjp = partial(vocabulary.cross_entropy_and_vjp, rt)


class NumpyBackend(Backend):
    """The backend of NumPy on a CPU: the kernels of one model, and the threads and memory that they share."""

    kernels: NumpyKernels

    def __init__(self, kernels: NumpyKernels) -> None:
        super().__init__(kernels)
        k = kernels
        steps = decoder.Steps(
            self.ops,
            linears=k.linears,
            rope_append=k.rope_append,
            add=k.residual_add,
            gated=k.gated,
            diff_attention_with_lse=k.diff_attention_with_lse,
            diff_attention_vjp=k.diff_attention_vjp,
        )
        self.fast_diffllama = partial(decoder.fast_diffllama, steps=steps)
        self.saving_ops = partial(decoder.saving_ops, steps)
        self.cross_entropy_and_vjp = k.cross_entropy_and_vjp

    def inference_scope(self, p: Any = None, input_ids: Any = None) -> AbstractContextManager[Any]:
        """Own the cores and keep scratch memory for one pass; see `Runtime`."""
        while isinstance(input_ids, list | tuple) and len(input_ids) == 1:
            input_ids = input_ids[0]
        several = input_ids is None or isinstance(input_ids, list | tuple) or np.size(input_ids) != 1
        return self.kernels.inference_scope(None if several else p["layers"][0]["mlp"]["gate_proj"]["weight"])

    def repeated_scope(self) -> AbstractContextManager[Any]:
        """Keep scratch memory from one pass to the next."""
        return self.kernels.repeated_scope()

    def split_batch(self, batch: int, tokens: int) -> list[slice]:
        """Cut a batch into the parts that one thread trains on; their number does not depend on the threads."""
        parts = min(max(-(-batch * tokens // self.kernels.runtime.tuning.training_tokens), 1), batch)
        return [slice(i * batch // parts, (i + 1) * batch // parts) for i in range(parts)]

    def map(self, work: Callable[[Any], Any], items: Any) -> None:
        """Call `work(item)` for every item, on all threads."""
        self.kernels.runtime.workers.map(work, items)

    def map_in_order(self, work: Callable[[Any], Any], items: Sequence[Any], take: Callable[[Any], Any]) -> None:
        """Call `work(item)` on all threads, and `take(result)` one at a time in the order of the items."""
        self.kernels.runtime.workers.map_in_order(work, items, take)


def diff_lambda(
    lambda_q1: FloatArray, lambda_k1: FloatArray, lambda_q2: FloatArray, lambda_k2: FloatArray, lambda_init: float
) -> Any:
    """Compute λ without looking up the array library: every token needs it in every layer."""
    vectors = lambda_q1, lambda_k1, lambda_q2, lambda_k2
    if lambda_q1.ndim != 1 or any(x.shape != lambda_q1.shape for x in vectors) or not same_dtype(*vectors):
        return NotImplemented
    return np.exp(np.vecdot(lambda_q1, lambda_k1)) - np.exp(np.vecdot(lambda_q2, lambda_k2)) + lambda_init
