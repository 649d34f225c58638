"""Fast twins for NumPy of attention: by heads and blocks of queries, each over the keys that it may see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff import layers
from refdiff.backends import laid_over
from refdiff.backends.attention_inputs import covers, fits, hides, pair_of
from refdiff.backends.numpy_attention_scores import CACHED, Map, largest, pieces, scores_of, softmax_rows
from refdiff.backends.numpy_few_query_kernels import LEAST, NumpyFewQueryKernels
from refdiff.backends.numpy_pieces import WIDE, lay_keys, lay_values, multiply_values
from refdiff.backends.numpy_row_kernels import FloatArray, alike, cut

SCORES = 2**20
"""How many attention scores of one map a block holds: 4 MB in float32, enough rows for a product at full speed."""

QUERIES = 64
"""The most queries in a block: more would compute too much of the triangle that causality hides."""

TOGETHER = 2**19
"""Up to how many scores of one map the heads of a block have together, where each has fewer: threads that often ask
for Python wait for each other."""

NARROW = 16
"""In blocks of queries, values of fewer features are multiplied as the layer does: BLAS sums them up less exactly as
rows of a product."""


class NumpyAttentionKernels(NumpyFewQueryKernels):
    """The kernels of attention, over one map or two."""

    unpacked = 1
    """More than one if products are multiplied in pieces that BLAS does not pack; see `NumpyProductKernels`."""

    def diff_attention(
        self,
        q1: FloatArray,
        k1: FloatArray,
        q2: FloatArray,
        k2: FloatArray,
        v: FloatArray,
        lambda_: Any,
        mask: NDArray[np.bool_] | None = None,
        bias: FloatArray | None = None,
        *,
        causal: bool = True,
    ) -> Any:
        """Attend over two maps; see `_attend`."""
        pair = pair_of(q1, k1, q2, k2, v, lambda_, mask, bias, causal=causal)
        return NotImplemented if pair is None else self._attend(*pair, causal)

    def diff_attention_with_lse(self, *given: Any, causal: bool = True) -> Any:
        """Return that, and the log-sum-exps of the rows of both maps (2, 2, B, H, T, 1), where it goes by blocks."""
        pair = pair_of(*given, causal=causal)
        if pair is None:
            return NotImplemented
        maps, v, lambdas = pair
        (B, H, T, _), S = maps[0][0].shape, v.shape[2]
        if not goes_by_blocks(B, H, T, S):
            return NotImplemented
        lse = np.empty((2, 2, B, H, T, 1), maps[0][0].dtype)
        return self._by_blocks(maps, v, lambdas, causal, lse).transpose(2, 0, 3, 1), lse

    def plain_heads(
        self,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        mask: NDArray[np.bool_] | None = None,
        bias: FloatArray | None = None,
        *,
        causal: bool = True,
        attention_weights: Callable[..., Any] = layers.attention_weights,
    ) -> Any:
        """Attend over one map; see `_attend`."""
        if laid_over(attention_weights) or not fits(q, k, q, k, v) or not alike(q, k, v, bias):
            return NotImplemented
        (B, H, T, _), (_, S, e) = q.shape, v.shape[1:]
        fit = all(x is None or covers(x, (B, H, T, S)) for x in (mask, bias))
        if not fit or (causal and S < T) or hides(bias) or (mask is not None and mask.dtype != np.bool_):
            return NotImplemented
        m, z = (None if x is None else x[(None,) * (4 - x.ndim)] for x in (mask, bias))
        return self._attend([(q, k, m, z)], v, None, causal).swapaxes(1, 2).reshape(B, T, H * e)

    def _attend(self, maps: Sequence[Map], v: FloatArray, lambdas: Any, causal: bool) -> FloatArray:
        """Compute (B, H, T, e) from each map's q, k, mask and bias; a second map is taken from the first λ times.

        Few queries meet some keys at a time. Many are taken in blocks, each over the keys that it may see: only the
        scores of a block are held, and memory grows with T, not with T². What is small is done at once.
        """
        (B, H, T, _), S = maps[0][0].shape, v.shape[2]
        if goes_by_blocks(B, H, T, S):
            return self._by_blocks(maps, v, lambdas, causal).transpose(2, 0, 3, 1)
        if T >= LEAST:
            return self._at_once(maps, v, lambdas, causal)
        one_by_one = [(q[:, None], k[:, None]) for q, k, *_ in maps]
        return self._of_few(one_by_one, [(mask, bias) for *_, mask, bias in maps], v, lambdas, causal)

    def _at_once(self, maps: Sequence[Map], v: FloatArray, lambdas: Any, causal: bool) -> FloatArray:
        """Multiply all heads in one call."""
        (B, H, T, _), (K, S, e) = maps[0][0].shape, v.shape[1:]
        hidden = np.triu(np.ones((T, T), dtype=np.bool_), 1) if causal else None
        (p, sums), *second = (softmax_rows(q, k, m, z, hidden) for q, k, m, z in maps)
        for p2, sums2 in second:
            p2 *= lambdas * (sums / sums2)
            p -= p2
        product = (p.reshape(B, K, H // K * T, S) @ v).reshape(B, H, T, e)
        product /= sums
        return product

    def _by_blocks(
        self, maps: Sequence[Map], v: FloatArray, lambdas: Any, causal: bool, lse: FloatArray | None = None
    ) -> FloatArray:
        """Multiply by V once, and return (H, e, B, T), the order that the next product takes.

        With P = exp(S − c) and row sums s, (P₁/s₁ − λ P₂/s₂) V = ((P₁ − λ (s₁/s₂) P₂) V) / s₁. A thread holds the
        scores of one block of queries at a time, in memory that the next block has again. `lse` (maps, 2, B, H, T, 1)
        receives the log-sum-exp of each row; see `softmax_rows`.
        """
        (B, H, T, _), (K, S, e) = maps[0][0].shape, v.shape[1:]
        G = H // K
        size = min(max(SCORES // (G * S), LEAST), QUERIES)
        out = self._workspace.empty((H, e, B, T), v.dtype)
        by_heads, parts = out.transpose(2, 0, 1, 3), self._parts(B, K, G * size * S)
        blocks = [
            (*part, t) for t in reversed(cut(T, size)) for part in parts
        ]  # the longest first: threads end together
        rooms = self._rooms(len(maps), parts[0], G * size * S, v.dtype, len(blocks))
        bound = largest(maps)
        laid = None
        if T >= QUERIES and e % WIDE == 0 and self._in_pieces(v.dtype):
            laid = [lay_keys(k, self._workspace.empty, self._workers.each) for _, k, *_ in maps]
            v = lay_values(v, self._workspace.empty, self._workers.each)

        def block(at: tuple[slice, slice, slice]) -> None:
            b, k, t = at
            h, n, keys = slice(k.start * G, k.stop * G), t.stop - t.start, S - T + t.stop if causal else S
            values = v[b, k, :keys]
            heads = (*values.shape[:2], G, n)
            room = rooms.pop()
            rows, sums = scores_of(maps, (b, k, h, t, slice(keys)), room, bound, causal, lse, laid=laid)
            if lambdas is not None:
                share = lambdas[b, h, t].reshape(-1, 1) * (sums[0] / sums[1])
                for i in pieces(len(share), keys):
                    rows[1][i] *= share[i]
                    rows[0][i] -= rows[1][i]
            into = by_heads[b, h, :, t].reshape(*heads[:3], e, n)
            weights = rows[0].reshape(*heads, keys)
            if laid is not None:
                product = multiply_values(weights.reshape(*heads[:2], G * n, keys), values)
                into[...] = product.reshape(*heads, e).swapaxes(3, 4)
            elif e < NARROW:
                into[...] = (weights @ values[:, :, None]).swapaxes(3, 4)
            else:
                np.matmul(values.swapaxes(2, 3)[:, :, None], weights.swapaxes(3, 4), out=into)
            into /= sums[0].reshape(*heads[:3], 1, n)
            rooms.append(room)

        self._workers.each(block, blocks)
        return out

    def _in_pieces(self, dtype: Any) -> bool:
        """Whether large products are cut into pieces that BLAS does not pack: on threads of ours, in float32."""
        return self.unpacked > 1 and self._workers.alone and dtype == np.float32

    def _parts(self, rows: int, heads: int, scores: int) -> list[tuple[slice, slice]]:
        """Cut (B, K) into the parts that a block takes: several rows or heads where each has few scores."""
        size = max(min(TOGETHER // scores, -(-rows * heads // self._workers.threads)), 1)
        return [(b, k) for b in cut(rows, max(size // heads, 1)) for k in cut(heads, size)]


def goes_by_blocks(B: int, H: int, T: int, S: int) -> bool:
    """Whether there are queries enough, and more scores than a core's cache holds."""
    return T >= LEAST and B * H * T * S > CACHED
