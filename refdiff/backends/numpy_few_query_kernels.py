"""Fast twins for NumPy of attention with few queries, as of a new token: by heads, some keys and values at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff import layers
from refdiff.backends import laid_over
from refdiff.backends.numpy_attention_scores import SEEN, SMALL, least_seen, part_of, root_of
from refdiff.backends.numpy_pieces import SIDE_BY_SIDE, UNPACKED, multiply_few, sum_few
from refdiff.backends.numpy_rope_kernels import NumpyRopeKernels
from refdiff.backends.numpy_row_kernels import FloatArray, alike, cut

LEAST = 16
"""Fewer queries are few; a block of many has no fewer."""

HELD = 2**18
"""About how many scores of few queries, of both maps, a thread holds at a time: 1 MB in float32."""

FEW_SCORES = 2**15
"""Of fewer scores of one map, few queries are not worth a second thread."""

THREADED = 2 * UNPACKED
"""From how large a product on keys are not cut for it: beyond, packing them costs less than BLAS's threads gain."""

KEYS = 256
"""The most keys that few queries meet at a time: with AVX-512 BLAS does not pack so few."""

LEAST_KEYS = 64
"""And the fewest, where queries are so many that BLAS packs these too."""

PARTS = 4
"""In so many parts at least few queries' weights times values are summed up: a sum of sums is more exact."""

LEAST_VALUES = 16
"""The fewest values of such a part; the most are `KEYS`."""

ALL = slice(None)


class NumpyFewQueryKernels(NumpyRopeKernels):
    """The kernels of attention with few queries, over one map or two."""

    def diff_heads_hf(
        self,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        lambda_: Any,
        lambda_init: float,
        eps: float,
        mask: NDArray[np.bool_] | None = None,
        bias: FloatArray | None = None,
        *,
        causal: bool = True,
        diff_attention: Callable[..., Any] = layers.diff_attention,
        rms_norm: Callable[..., Any] = layers.rms_norm,
    ) -> Any:
        """Multiply few queries, that see all or all before them, by the keys of both maps at once."""
        if mask is not None or bias is not None or laid_over(diff_attention) or laid_over(rms_norm):
            return NotImplemented
        few = q.ndim == k.ndim == v.ndim == 4 and q.shape[2] < LEAST
        if (
            not few
            or not eps >= 0
            or not isinstance(lambda_, np.ndarray | np.generic)
            or lambda_.size != 1
            or lambda_.ndim > 4
        ):
            return NotImplemented
        (B, both, T, d), (K, S, e) = q.shape, v.shape[1:]
        H = both // 2
        fit = both == 2 * H and K and H % K == 0 and k.shape == (B, 2 * K, S, d) and len(v) == B and T <= S
        if not fit or 0 in (q.size, v.size) or not alike(q, k, v, np.asarray(lambda_)):
            return NotImplemented
        lambdas = np.empty((B, H, T, 1), v.dtype)
        lambdas[...] = lambda_
        maps = q.reshape(B, 2, H, T, d), k.reshape(B, 2, K, S, d)
        heads = self.rms_norm(self._of_few([maps], [(None, None)] * 2, v, lambdas, causal), None, eps)
        heads *= 1 - lambda_init
        return heads.swapaxes(1, 2).reshape(B, T, H * e)

    def _of_few(
        self,
        maps: Sequence[tuple[FloatArray, FloatArray]],
        hidden_by: Sequence[tuple[NDArray[Any] | None, NDArray[Any] | None]],
        v: FloatArray,
        lambdas: Any,
        causal: bool,
    ) -> FloatArray:
        """Multiply few queries by some keys at a time, and V, as much of it, by the difference of the maps.

        `maps` has queries (B, maps, H, T, d) and keys (B, maps, K, S, d), of both at once or one after the other;
        `hidden_by` the mask and bias of each. The exponentials are of the scores themselves where none is so large that
        it matters, and each query sees many keys: a softmax is the same whatever is taken away from its scores.
        """
        (B, _, H, T, d), (K, S, e), M = maps[0][0].shape, v.shape[1:], len(hidden_by)
        G = H // K
        n = G * T
        hidden = np.triu(np.ones((T, T), dtype=np.bool_), 1) if causal and T > 1 else None
        out = np.empty((B, H, T, e), v.dtype)
        for_blas = not self._workers.alone and S * d * n >= THREADED
        keys_at_a_time = S if for_blas else min(max(UNPACKED // d // n // 8 * 8, LEAST_KEYS), KEYS)
        # a power of two
        values_at_a_time = 1 << (max(min(KEYS, UNPACKED // n // e, S // PARTS), LEAST_VALUES).bit_length() - 1)
        masked = any(mask is not None for mask, _ in hidden_by)
        seen_partly = masked or hidden is not None or any(bias is not None for _, bias in hidden_by)
        many = np.full(B, S - (T - 1 if causal else 0) >= SEEN)
        for mask, _ in hidden_by if masked else ():
            many &= least_seen(mask, (B, H, T, d), S, causal) >= SEEN
        limits, ones = np.where(many, SMALL, 0), np.ones(S, v.dtype)
        threads = self._workers.threads if self._workers.alone and B * H * T * S >= FEW_SCORES else 1
        size = max(min(HELD // (M * n * S), -(-B * K // threads)), 1)
        parts = [(b, k) for b in cut(B, max(size // K, 1)) for k in cut(K, min(size, K))]
        # what needs Python is done before: threads wait for each other while one of them has it
        root, exact = root_of(d)
        groups = (1, n) if n <= SIDE_BY_SIDE else (G, T)  # by heads as the layer: of more BLAS adds one term to another
        asked = [
            (np.ascontiguousarray(q / root if exact else q).reshape(B, -1, K, *groups, d), k[..., None, :, :])
            for q, k in maps
        ]
        rooms = self._rooms(1, parts[0], M * n * S, v.dtype, len(parts))

        def part(at: tuple[slice, slice]) -> None:
            b, k = at
            h = slice(k.start * G, k.stop * G)
            rows, heads = b.stop - b.start, k.stop - k.start
            room = rooms.pop()
            scores = room[0, : rows * M * heads * n * S].reshape(rows, M, heads, n, S)
            for at_map, (q, key) in zip(cut(M, M // len(asked)), asked, strict=True):
                into = scores[:, at_map].reshape(rows, -1, heads, *groups, S)
                multiply_few(q[b, :, k], key[b, :, k], keys_at_a_time, into)
            if not exact:
                scores /= root
            for grid, (mask, bias) in zip(scores.swapaxes(0, 1), hidden_by, strict=True) if seen_partly else ():
                by_head = grid.reshape(rows, heads * G, T, S)
                if bias is not None:
                    by_head += part_of(bias, (b, h, ALL, ALL))
                if mask is not None:
                    np.copyto(by_head, -np.inf, where=~part_of(mask, (b, h, ALL, ALL)))
                if hidden is not None:
                    np.copyto(by_head[..., S - T :], -np.inf, where=hidden)
            top = np.maximum.reduce(scores, axis=-1, keepdims=True)
            if masked:
                top[top == -np.inf] = 0
            # each row of the batch goes by its own scores, not by its neighbours'
            small = np.maximum.reduce(np.abs(top.reshape(rows, -1)), axis=1) < limits[b]
            if np.count_nonzero(small) < rows:
                top[small] = 0
                scores -= top
            np.exp(scores, out=scores)
            sums = np.vecdot(scores, ones)[..., None]
            if masked:
                sums[sums == 0] = 1
            weights = scores[:, 0]
            if M > 1:
                scores[:, 1] *= lambdas[b, h].reshape(rows, heads, n, 1) * (sums[:, 0] / sums[:, 1])
                weights -= scores[:, 1]
            product = sum_few(weights, v[b, k], values_at_a_time)
            product /= sums[:, 0]
            out[b, h] = product.reshape(rows, heads * G, T, e)
            rooms.append(room)

        self._workers.each(part, parts)
        return out

    def _rooms(self, arrays: int, part: tuple[slice, slice], scores: int, dtype: Any, items: int) -> deque[FloatArray]:
        """Allocate what each free thread, of no more than there are items, needs: arrays for the scores of a part."""
        b, k = part
        shape = arrays, (b.stop - b.start) * (k.stop - k.start) * scores
        return deque(self._workspace.empty(shape, dtype) for _ in range(min(self._workers.free, items)))
