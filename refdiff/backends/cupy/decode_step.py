"""One more token of each sequence as a single launch: a decoding step, recorded as a CUDA graph and replayed.

The token, its position and the number of tokens in the cache are numbers in the device's memory, and the cache has
capacity for more, so that one recording serves step after step. It is made anew when the capacity is used up (it
doubles each time), or when the cache has other buffers than those recorded (after a reorder).

Decoding continues without a recording where one would be wrong or impossible: a layer function was replaced, RoPE's
frequencies depend on the length, the batch is larger than the kernel of `linear` serves, or the device refuses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, from_numpy
from refdiff.backends import decoder
from refdiff.backends.cupy.graph import GraphError, recordable
from refdiff.layers.rope_frequencies import LENGTH_DEPENDENT
from refdiff.messages import warn


class DecodeStep:
    """The decoding step of one call of `generate`, during which the model's weights and functions stay the same.

    Attributes:
        refused: why nothing is recorded, or None; it is warned of once, but for float64.
        recordings: how many were made.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._runtime = model, model.backend.kernels.runtime
        self._steps = 0
        self._recorded: Any = None
        self._buffers: tuple[Array, ...] = ()
        self._state: Array = None
        self.refused: str | None = None
        self.recordings = 0

    @classmethod
    def create(cls, model: Any) -> DecodeStep | None:
        """Return the step of a model, or None where its kind of RoPE, kernels or functions rule it out."""
        if not model.backend.is_own(model.ops):
            return None
        return None if model.config.rope_parameters.get("rope_type") in LENGTH_DEPENDENT else cls(model)

    def __call__(
        self, cache: Any, tokens: NDArray[np.int64], positions: NDArray[np.int64], mask: NDArray[np.int64] | None
    ) -> Array | None:
        """Read one more token of each sequence; return None, having done nothing, where a usual step is needed.

        Shapes:
            tokens and positions (B,), mask (B, S) of what is in the cache and the new token, or None -> logits (B, V),
            which the next call writes over
        """
        self._steps += 1
        if self.refused is not None or self._steps <= self._runtime.tuning.usual_steps or self._warns(positions):
            return None
        length = len(cache)
        if self._recorded is None or length >= self._capacity or not self._same(cache):
            self._record(cache, tokens, positions, mask)
            if self._recorded is None:
                return None
        self._fill(tokens, positions, length)
        logits = self._recorded.replay()
        cache.advance(1)
        return logits

    @property
    def _capacity(self) -> int:
        return int(self._buffers[0].shape[2])

    def _same(self, cache: Any) -> bool:
        """Return whether the buffers of the cache are those that were recorded."""
        now = cache.buffers
        return len(now) == len(self._buffers) and all(a is b for a, b in zip(now, self._buffers, strict=True))

    def _warns(self, positions: NDArray[np.int64]) -> bool:
        """Return whether the model has yet to warn that the text is longer than its maximum."""
        past = int(positions.max()) >= self._model.config.max_position_embeddings
        return past and not self._model.warned_of_length

    def _fill(self, tokens: NDArray[np.int64], positions: NDArray[np.int64], length: int) -> None:
        numbers = np.concatenate([tokens, positions, [length]]).astype(np.int64)
        self._runtime.device.fill(self._state, numbers)

    def _record(
        self, cache: Any, tokens: NDArray[np.int64], positions: NDArray[np.int64], mask: NDArray[np.int64] | None
    ) -> None:
        self._recorded = None
        length = len(cache)
        if cache.static is not None and length >= cache.static:
            return  # a usual step raises the error
        capacity = max(self._runtime.tuning.min_capacity, 2 * length)
        cache.reserve(cache.static or max(min(capacity, cache.max_tokens or capacity), length + 1))
        self._buffers = cache.buffers
        B = len(tokens)
        self._state = self._put(np.zeros(2 * B + 1, np.int64))
        self._fill(tokens, positions, length)
        step = self._step(B, mask)
        try:
            self._recorded = self._runtime.record(step)
        except GraphError as error:
            self.refused = str(error)
            if self._model.base_params["norm"]["weight"].dtype != np.float64:  # for which there are no kernels
                warn(f"steps of decoding are not recorded on the device, and take longer: {error}")
            return
        self.recordings += 1

    def _step(self, B: int, mask: NDArray[np.int64] | None) -> Any:
        """Return the function that is recorded; it keeps alive the state, the buffers, the weights and the tables."""
        model, xp, capacity = self._model, self._model.xp, self._capacity
        config, state, steps = model.config, self._state, recordable(model.backend.kernels)
        ops, p = steps.ops, model.base_params
        head = model.params.get("lm_head") or p["embed_tokens"]
        frequencies, scale = ops.rope_frequencies(
            config.rope_parameters, config.head_dim, config.max_position_embeddings, capacity
        )
        dtype = p["norm"]["weight"].dtype
        tables = ops.rope_cos_sin(self._put(np.arange(capacity)[None, :]), frequencies, scale, dtype)
        cos, sin = (xp.reshape(table, (capacity, table.shape[3])) for table in tables)
        seen = None
        if mask is not None and not mask.all():  # new tokens may be attended to; the rest of the capacity is not read
            whole = np.ones((B, capacity), bool)
            whole[:, : mask.shape[1]] = mask != 0
            seen = ops.padding_mask(self._put(whole))
        buffers: Any = _FixedBuffers(self._buffers)
        weights = model.state_dict()  # kept as long as the recording

        def step(_kept: Any = weights) -> Array:
            factors = [
                xp.reshape(xp.take(table, state[B : 2 * B], axis=0), (B, 1, 1, table.shape[1])) for table in (cos, sin)
            ]
            ctx = model.context(ops, factors[0], factors[1], mask=seen, cache=buffers)
            with self._runtime.counted_by(state[2 * B :]):
                x = xp.astype(ops.embedding(xp.reshape(state[:B], (B, 1)), **p["embed_tokens"]), dtype, copy=False)
                return ops.linear(decoder.fast_diffllama(p, x, ctx, steps=steps), **head)[:, -1, :]

        return step

    def _put(self, x: NDArray[Any]) -> Array:
        return from_numpy(x, self._model.xp, self._model.device)


class _FixedBuffers:
    """A cache of fixed buffers: the device knows where in them the new tokens belong."""

    def __init__(self, buffers: tuple[Array, ...]) -> None:
        self._buffers = buffers

    def allocate(self, layer: int, k: Array, v: Array) -> tuple[Array, Array, int]:
        return *self.commit(layer, 0), 0

    def commit(self, layer: int, end: int) -> tuple[Array, Array]:
        return self._buffers[2 * layer], self._buffers[2 * layer + 1]
