"""The cache of keys and values."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.arrays import Array, device, namespace, take
from refdiff.memory import physical_memory
from refdiff.model.inputs import integers
from refdiff.refused import RefusedAttributes


class KVCache(RefusedAttributes):
    """The keys and values of every layer, kept between calls of a model.

    `len(cache)` is the number of tokens that have gone through all layers. Only `append`
    (`allocate`, then `commit`) and `advance` add tokens. The arrays that `append` returns are
    views that later calls may overwrite after a `crop` or a `reorder`.

    Args:
        num_layers: how many layers the model has.
        static: the capacity in tokens, allocated at the first `append`. Without it the capacity
            is an eighth more than the first tokens, 8 to 256, or what was reserved; it grows by
            half when it is used up, so that n tokens cost time in proportion to n.
        max_tokens: the most tokens that it will hold, if known; its capacity does not grow past
            it.

    Raises:
        ValueError: `num_layers`, `static` or `max_tokens` is below 1, or no integer.
    """

    def __init__(self, num_layers: int, *, static: int | None = None, max_tokens: int | None = None) -> None:
        sizes = (num_layers, static, max_tokens)
        if any(size is not None and (not isinstance(size, int | np.integer) or size < 1) for size in sizes):
            raise ValueError(
                f"KVCache: num_layers, static, max_tokens: got {num_layers!r}, {static!r}, {max_tokens!r}, "
                "expected integers of 1 or more"
            )
        self.static = static
        self.max_tokens = max_tokens
        self._reserved = 0
        self._buffers: list[tuple[Array, Array] | None] = [None] * num_layers
        self._lengths = [0] * num_layers

    def __len__(self) -> int:
        # A call that was interrupted between two layers does not count: the next one overwrites its tokens.
        return min(self._lengths)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens, as `len` does; the name is transformers'."""
        return len(self)

    @property
    def num_layers(self) -> int:
        """The number of layers that the cache serves."""
        return len(self._buffers)

    @property
    def batch_size(self) -> int | None:
        """The number of sequences, or None before the first `append`."""
        return None if self._buffers[0] is None else int(self._buffers[0][0].shape[0])

    def append(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Add the keys and values of new tokens to a layer, and return all that it has.

        Shapes:
            k (B, K, T, d), v (B, Kv, T, e) -> (B, K, S, d), (B, Kv, S, e), S = earlier + T

        Raises:
            ValueError: batch size, heads, head size or dtype differ from those in the cache, or a
                static cache is full.
        """
        keys, values, start = self.allocate(layer, k, v)
        end = start + k.shape[2]
        keys[:, :, start:end, :] = k
        values[:, :, start:end, :] = v
        return self.commit(layer, end)

    def allocate(self, layer: int, k: Array, v: Array) -> tuple[Array, Array, int]:
        """Return a layer's buffers with capacity for new tokens, and where they begin; see `commit`.

        Raises:
            ValueError: as `append`.
            MemoryError: this machine has less memory than the tokens take. Linux may grant memory
                that does not exist and kill the process on use.
        """
        start = len(self)
        end = start + k.shape[2]
        if self.static is not None and end > self.static:
            raise ValueError(
                f"KVCache: got {end} tokens, expected at most static={self.static}; make a larger one, or crop this one"
            )
        buffers = self._buffers[layer]
        if buffers is not None:
            _check_like_cached("k", k, buffers[0])
            _check_like_cached("v", v, buffers[1])
        capacity = 0 if buffers is None else buffers[0].shape[2]
        if buffers is None or end > capacity:
            size = self.static or max(end, self._next_capacity(end, capacity))
            self._check_memory(k.shape[0], end, k, v)
            buffers = (_grown(k, size, buffers and buffers[0], start), _grown(v, size, buffers and buffers[1], start))
            self._buffers[layer] = buffers
        return *buffers, start

    def _check_memory(self, sequences: int, tokens: int, k: Array, v: Array) -> None:
        if not isinstance(k, np.ndarray):
            return
        needed = self.num_layers * sequences * tokens * sum(x.itemsize * x.shape[1] * x.shape[3] for x in (k, v))
        if needed > (memory := physical_memory()):
            raise MemoryError(
                f"KVCache: the keys and values of {sequences} sequences of {tokens:,} tokens take {needed:,} bytes, "
                f"but this machine has {memory:,}"
            )

    def _next_capacity(self, end: int, capacity: int) -> int:
        """Return the capacity to allocate where `end` tokens exceed `capacity`, which is 0 at first."""
        wanted = max(end + min(max(end // 8, 8), 256), self._reserved) if capacity == 0 else capacity + capacity // 2
        return wanted if self.max_tokens is None else min(wanted, self.max_tokens)

    def commit(self, layer: int, end: int) -> tuple[Array, Array]:
        """Set the length of a layer to `end`, and return the keys and values of its tokens."""
        buffers = self._buffers[layer]
        if buffers is None:
            raise ValueError(f"KVCache: commit: got layer {layer}, which has no buffers yet; append to it first")
        self._lengths[layer] = end
        return buffers[0][:, :, :end, :], buffers[1][:, :, :end, :]

    @property
    def buffers(self) -> tuple[Array, ...]:
        """Keys and values of every layer that has any: (B, K, capacity, d), (B, Kv, capacity, e)."""
        return tuple(x for pair in self._buffers if pair is not None for x in pair)

    def reserve(self, tokens: int) -> None:
        """Raise every layer's capacity to `tokens` tokens, an empty layer's at its first `append`.

        Raises:
            ValueError: the cache is static, and smaller.
        """
        if self.static is not None and tokens > self.static:
            raise ValueError(
                f"KVCache: reserve: got {tokens} tokens, expected at most static={self.static}; make a larger one"
            )
        self._reserved = tokens
        for layer, buffers in enumerate(self._buffers):
            if buffers is not None and buffers[0].shape[2] < tokens:
                k, v = (_grown(x, tokens, x, len(self)) for x in buffers)
                self._buffers[layer] = (k, v)

    def advance(self, tokens: int) -> None:
        """Add `tokens` to the length: the device has written them into every layer's buffers.

        Raises:
            ValueError: they exceed the capacity.
        """
        end = len(self) + tokens
        if any(buffers is None or buffers[0].shape[2] < end for buffers in self._buffers):
            raise ValueError(f"KVCache: advance: got {end} tokens in all, more than the capacity; reserve it first")
        self._lengths = [end] * self.num_layers

    def reorder(self, indices: Any) -> None:
        """Replace the sequences by those at `indices`; `reorder([0, 0, 1])` changes their number.

        Raises:
            IndexError: an index is not that of a sequence in the cache.
            ValueError: an index is no integer.
            MemoryError: as `allocate`.
        """
        rows: list[int] = integers("indices", indices).reshape(-1).tolist()
        batch = self.batch_size
        if batch is None:
            return
        if any(not 0 <= i < batch for i in rows):
            raise IndexError(f"KVCache: reorder: got indices {rows}, expected 0 to {batch - 1}")
        for layer, buffers in enumerate(self._buffers):
            if buffers is not None:
                if len(rows) > batch:
                    self._check_memory(len(rows), len(self), *buffers)
                k, v = (_reordered(x, rows, len(self)) for x in buffers)
                self._buffers[layer] = (k, v)

    def crop(self, length: int | None = None, *, tokens_to_remove: int = 0) -> None:
        """Forget all tokens after the first `length`, or the last -`length`; 0 forgets all.

        -`tokens_to_remove` of the last tokens are forgotten: transformers' name and meaning.

        Raises:
            ValueError: `length` is no integer from -len(cache) to len(cache).
        """
        n = len(self)
        length = max(n + tokens_to_remove, 0) if length is None else length
        if not isinstance(length, int | np.integer) or not -n <= length <= n:
            raise ValueError(f"KVCache: crop: got length {length!r}, expected an integer from {-n} to {n}")
        self._lengths = [length % n if length < 0 else length] * self.num_layers


def _check_like_cached(name: str, new: Array, cached: Array) -> None:
    """Raise where new keys or values differ from those in the cache by more than their number of tokens."""
    B, heads, _, size = cached.shape
    if new.shape[0] != B:
        raise ValueError(
            f"KVCache: {name}: got shape {tuple(new.shape)}, expected a batch of {B} as in the cache; pass the same "
            "batch, or reorder the cache first"
        )
    if (new.shape[1], new.shape[3], new.dtype) != (heads, size, cached.dtype):
        raise ValueError(
            f"KVCache: {name}: got shape {tuple(new.shape)} of {new.dtype}, expected ({B}, {heads}, T, {size}) of "
            f"{cached.dtype} as in the cache; use one cache for one model"
        )


def _grown(like: Array, size: int, old: Array | None, used: int) -> Array:
    """Allocate `size` tokens of the shape of `like`, and copy the `used` old ones."""
    xp = namespace(like)
    shape = (like.shape[0], like.shape[1], size, like.shape[3])
    new = xp.empty(shape, dtype=like.dtype, device=device(like))
    if old is not None:
        new[:, :, :used, :] = old[:, :, :used, :]
    return new


def _reordered(x: Array, rows: list[int], used: int) -> Array:
    """Gather batch items in place if their number stays; only the `used` tokens are copied."""
    xp, where = namespace(x), device(x)
    moved = [i for i, row in enumerate(rows) if row != i]
    new = x[:, :, :, :]  # a new view of the same memory tells holders of the old one that it changed
    if len(rows) != x.shape[0]:
        moved = list(range(len(rows)))
        new = xp.empty((len(rows), *x.shape[1:]), dtype=x.dtype, device=where)
    if moved:
        there = xp.asarray([rows[i] for i in moved], dtype=xp.int64, device=where)
        taken = take(x[:, :, :used, :], there)
        for i, row in enumerate(moved):
            new[row, :, :used, :] = taken[i, ...]
    return new
