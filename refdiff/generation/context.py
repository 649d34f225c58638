"""A model with a KV cache of the tokens read so far: ids in, logits of the last positions out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, from_numpy, take, to_numpy
from refdiff.layers.rope_frequencies import LENGTH_DEPENDENT
from refdiff.model import inputs
from refdiff.model.cache import KVCache

GENERATED_CAPACITY = 256
"""Generated tokens for which the cache reserves capacity at the start, if the length limit allows as many."""


class DecodingContext:
    """Reads a growing (B, T) array of ids; only new tokens go through the model.

    Positions are those of transformers' `generate`: from a mask, cumsum(mask) − 1 with 0 at masked tokens, then one
    more for each generated token; without a mask, 0, 1, 2, …

    max_length: the most tokens of prompt and text, which bounds the capacity of the cache.
    progress: called before each chunk of a prompt that is read in several; see `validation.Progress`.
    cache: keys and values of the first ids. inputs_embeds (B, E, D): read in place of the prompt's ids, of which there
    are E or none. record: outputs to keep of each call of the model, "attentions" and "hidden_states".
    """

    def __init__(
        self,
        model: Any,
        mask: NDArray[np.int64] | None,
        max_length: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        cache: Any = None,
        inputs_embeds: Any = None,
        record: tuple[str, ...] = (),
    ) -> None:
        self.model = model
        self.cache: Any = cache
        self.length = 0 if cache is None else len(cache)
        self.step = None if record else model.backend.decode_step(model)
        self.outputs: dict[str, Any] = dict.fromkeys(record, ())
        self._inputs_embeds = inputs_embeds
        self._missing = 0
        self._max_length = max_length
        self._progress = progress
        self._mask = mask
        self._positions: NDArray[np.int64] | None = None
        if mask is not None:
            self._positions = np.where(mask == 0, 0, np.cumsum(mask, axis=1) - 1)

    def _extend_mask(self, total: int) -> None:
        """Extend mask and positions by unmasked tokens to a length of `total`."""
        if self._mask is None or self._positions is None or self._mask.shape[1] >= total:
            return
        B, T = self._mask.shape
        new = np.arange(1, total - T + 1)
        self._mask = np.concatenate([self._mask, np.ones((B, total - T), dtype=np.int64)], axis=1)
        self._positions = np.concatenate([self._positions, self._positions[:, -1:] + new], axis=1)

    def _read(self, ids: NDArray[np.int64], keep: int) -> Any:
        """Run the model over the new tokens in chunks; return its output with logits of the last `keep` tokens."""
        if self._inputs_embeds is not None:
            if self.length == 0:
                self._missing = self._inputs_embeds.shape[1] - ids.shape[1]
            ids = np.pad(ids, ((0, 0), (self._missing, 0)))  # so that each position has an id; none of these is read
        self._reserve(ids.shape[1])
        ends = self._chunk_ends(ids, keep)
        for total in (*ends, ids.shape[1]):
            if ends and self._progress is not None:
                self._progress("prompt", self.length, ids.shape[1])
            out = self._call_model(ids[:, :total], keep if total == ids.shape[1] else 1)
        return out

    def _reserve(self, prompt: int) -> None:
        """Create the cache with capacity for the whole prompt, not only its first chunk, and for a likely text."""
        if self.cache is None and self._max_length is not None:
            self.cache = KVCache(self.model.config.num_hidden_layers, max_tokens=self._max_length)
            self.cache.reserve(min(self._max_length, max(prompt * 3 // 2, prompt + GENERATED_CAPACITY)))

    def _chunk_ends(self, ids: NDArray[np.int64], keep: int) -> range:
        """Return the ends of all chunks of a long prompt but the last; reading in chunks bounds the memory."""
        if self.model.config.rope_parameters.get("rope_type") in LENGTH_DEPENDENT:
            return range(0)  # the RoPE frequencies depend on the length: read the prompt at once
        if self.outputs or (self._inputs_embeds is not None and self.length == 0):
            return range(0)
        step = max(self.model.backend.chunk_size // ids.shape[0], 1)
        return range(self.length + step, ids.shape[1] - keep + 1, step)

    def _call_model(self, ids: NDArray[np.int64], keep: int) -> Any:
        total = ids.shape[1]
        self._extend_mask(total)
        arguments: dict[str, Any] = {f"output_{name}": True for name in self.outputs}
        new: Any = ids[:, self.length :]
        if self._inputs_embeds is not None and self.length == 0:
            new, arguments["inputs_embeds"] = None, self._inputs_embeds
        if self._mask is not None and self._positions is not None:
            arguments["attention_mask"] = self._mask[:, :total] != 0
            arguments["position_ids"] = self._positions[:, self.length : total]
        out = self.model(new, cache=self.cache, use_cache=True, logits_to_keep=keep, **arguments)
        self.outputs = {name: (*steps, getattr(out, name)) for name, steps in self.outputs.items()}
        self.cache = out.cache
        self.length = total
        return out

    def count_alike(self, length: int, most: int) -> int:
        """Return how many of `most` tokens after the first `length` one call reads as a call for each would.

        RoPE's frequencies may depend on the length: then these are the tokens up to their next change.
        """
        c = self.model.config
        if most <= 0 or c.rope_parameters.get("rope_type") not in LENGTH_DEPENDENT:
            return max(most, 0)
        if self._mask is not None and self._positions is not None:
            length += int(self._positions.max()) + 1 - self._mask.shape[1]

        def frequencies(tokens: int) -> Any:
            return self.model.ops.rope_frequencies(c.rope_parameters, c.head_dim, c.max_position_embeddings, tokens)

        now = frequencies(length)
        return bisect_left(range(length + 1, length + 1 + most), True, key=lambda tokens: frequencies(tokens) != now)

    def read(self, ids: NDArray[np.int64], keep: int = 1) -> NDArray[np.floating]:
        """Read the new tokens of ids (B, T) and return logits (B, keep, V) of the last `keep` tokens, on the host."""
        return to_numpy(self._read(ids, keep).logits)

    def read_on_device(self, ids: NDArray[np.int64]) -> Array:
        """Read the new tokens of ids (B, T) and return logits (B, V) of the last one, on the model's device.

        The next call may overwrite them.
        """
        if self.step is not None and 0 < self.length == ids.shape[1] + self._missing - 1:
            self._extend_mask(self.length + 1)
            inputs.check_known(ids[:, -1], self.model.config.vocab_size)
            positions = np.full(len(ids), self.length) if self._positions is None else self._positions[:, self.length]
            logits = self.step(self.cache, ids[:, -1], positions, self._mask)
            if logits is not None:
                self.length += 1
                return logits
        return self._read(ids, 1).logits[:, -1, :]

    def reorder(self, indices: NDArray[np.int64]) -> None:
        """Replace sequence i by sequence `indices[i]`; their number may change, also in what was kept of the prompt."""
        if self.outputs and len(indices) != self.cache.batch_size:
            self.outputs = {
                name: tuple(tuple(take(x, from_numpy(indices, self.model.xp, self.model.device)) for x in step)
                            for step in steps)
                for name, steps in self.outputs.items()
            }  # fmt: skip
        self.cache.reorder(indices)
        if self._mask is not None and self._positions is not None:
            self._mask, self._positions = self._mask[indices], self._positions[indices]

    def crop(self, length: int) -> None:
        """Keep at most the first `length` tokens."""
        if length < self.length:
            self.cache.crop(length)
            self.length = length
