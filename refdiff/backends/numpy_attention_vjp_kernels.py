"""Fast twins for NumPy of attention's derivatives: by heads and blocks of whole rows of the maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff import layers
from refdiff.backends import laid_over
from refdiff.backends.attention_inputs import covers, fits, hides, mask_heads, pair_of
from refdiff.backends.numpy_attention_scores import Map, largest, scores_of
from refdiff.backends.numpy_kernels import NumpyKernels
from refdiff.backends.numpy_row_kernels import FloatArray, alike, cut
from refdiff.layers.diff_attention import sum_to

BLOCK = 2**17
"""How many scores of one map the way back holds: it has four arrays of them at a time, the way forward two."""

QUERIES = 128
"""The most queries that it takes at a time."""


class NumpyAttentionVjpKernels(NumpyKernels):
    """The kernels of attention's way back, over one map or two."""

    def diff_attention_vjp(
        self,
        g: FloatArray,
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
        """Go through blocks of whole rows of both maps; see `_attention_back`, with the weights 1 and −λ."""
        given = q1, k1, q2, k2, v, lambda_, mask, bias
        return self.diff_attention_vjp_from_lse(g, *given, lse=None, causal=causal)

    def diff_attention_vjp_from_lse(
        self, g: FloatArray, *given: Any, lse: FloatArray | None, causal: bool = True
    ) -> Any:
        """Do the same from the log-sum-exps that `diff_attention_with_lse` saved, A = e^(S − c) / s."""
        pair = pair_of(*given, causal=causal)
        if pair is None or g.shape != (*given[0].shape[:3], given[4].shape[3]) or not alike(g, given[0]):
            return NotImplemented
        maps, v, lambdas = pair
        (dq1, dq2), (dk1, dk2), dv, along = self._attention_back(g, maps, v, -lambdas, causal, lse)
        return dq1, dk1, dq2, dk2, dv, sum_to(-along, np.shape(given[5]))

    def plain_heads_vjp(
        self,
        g: FloatArray,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        mask: NDArray[np.bool_] | None = None,
        bias: FloatArray | None = None,
        *,
        causal: bool = True,
        attention_weights: Callable[..., Any] = layers.attention_weights,
        attention_weights_vjp: Callable[..., Any] = layers.attention_weights_vjp,
    ) -> Any:
        """Go through blocks of whole rows of the one map; see `_attention_back`."""
        if laid_over(attention_weights) or laid_over(attention_weights_vjp):
            return NotImplemented
        if not fits(q, k, q, k, v) or not alike(g, q, k, v, bias):
            return NotImplemented
        B, H, T, _ = q.shape
        e = v.shape[3]
        if g.shape != (B, T, H * e) or not _visible(mask, bias, (B, H, T, k.shape[2]), causal, pairs=False):
            return NotImplemented
        heads = g.reshape(B, T, H, e).swapaxes(1, 2)
        m, z = (None if x is None else x[(None,) * (4 - x.ndim)] for x in (mask, bias))
        (dq,), (dk,), dv, _ = self._attention_back(heads, [(q, k, m, z)], v, None, causal)
        return dq, dk, dv

    def _attention_back(
        self,
        g: FloatArray,
        maps: Sequence[Map],
        v: FloatArray,
        weights: FloatArray | None,
        causal: bool,
        lse: FloatArray | None = None,
    ) -> tuple[list[FloatArray], list[FloatArray], FloatArray, FloatArray]:
        """Pull g (B, H, T, e) back through (A₁ + w A₂) V, or through A V where there are no `weights` w (B, H, T, 1).

        A block holds a few queries with all the keys that they may see. Its softmax comes from the log-sum-exps of the
        way forward, where they were saved; or its sums come again with its scores, for it is whole. With
        P_i = e^(S_i − c), row sums s_i, G = g Vᵀ and ρ_i = rowsum(G ⊙ P_i) / s_i,
        ∂L/∂S_i = (w_i / s_i) P_i ⊙ (G − ρ_i) and ∂L/∂w = ρ₂; w_i / s_i and 1/√d go to the rows of the products, which
        are shorter. One thread has all queries of a key head, and adds up what comes back to its keys: always in the
        same order.

        Returns the gradients of every q, of every k, of v, and ρ of the last map.
        """
        (B, H, T, e), (K, S) = g.shape, v.shape[1:3]
        G, d = H // K, maps[0][0].shape[3]
        size = min(max(BLOCK // (G * S), 1), QUERIES)
        dqs, dks = [self._by_features(q) for q, *_ in maps], [self._by_features(k) for _, k, *_ in maps]
        dv = self._by_features(v)
        along, bound, parts = np.empty((B, H, T, 1), g.dtype), largest(maps), self._parts(B, K, G * size * S)
        rooms = self._rooms(len(maps) + 2, parts[0], G * size * S, g.dtype, len(parts))

        def block(b: slice, k: slice, t: slice, room: FloatArray) -> None:
            h, n, keys = slice(k.start * G, k.stop * G), t.stop - t.start, S - T + t.stop if causal else S
            values, whole = v[b, k, :keys], t.stop == T
            groups = values.shape[:2]
            ps, sums = scores_of(maps, (b, k, h, t, slice(keys)), room, bound, causal, lse, saved=lse is not None)
            back, free = (x[: ps[0].size].reshape(*groups, G * n, keys) for x in room[len(maps) :])
            ps = [p.reshape(back.shape) for p in ps]
            shares = [1 / x.reshape(*groups, G * n, 1) for x in sums]
            gradient, scales, both = g[b, h, t].reshape(*groups, G * n, e), list(shares), ps[0]
            if weights is not None:
                scales[1] = shares[1] * weights[b, h, t].reshape(*groups, G * n, 1)
                both = np.multiply(ps[1], scales[1] / scales[0], out=free)
                both += ps[0]
            _add(dv[b, k, :, :keys], (gradient * scales[0]).swapaxes(2, 3), both, whole)
            np.matmul(gradient, values.swapaxes(2, 3), out=back)
            for p, (q, key, *_), dq, dk, share, scale in zip(ps, maps, dqs, dks, shares, scales, strict=True):
                dots = np.vecdot(back, p)[..., None]
                dots *= share
                ds = np.subtract(back, dots, out=back if p is ps[-1] else free)
                ds *= p
                scale = scale / math.sqrt(d)
                into, turned = dq[b, h, :, t].reshape(*groups, G, d, n), ds.reshape(*groups, G, n, keys)
                np.matmul(key[b, k, None, :keys].swapaxes(3, 4), turned.swapaxes(3, 4), out=into)
                into *= scale.reshape(*groups, G, 1, n)
                queries = q[b, h, t].reshape(*groups, G * n, d) * scale
                _add(dk[b, k, :, :keys], queries.swapaxes(2, 3), ds, whole)
            along[b, h, t] = dots.reshape(groups[0], -1, n, 1)

        def some(part: tuple[slice, slice]) -> None:
            room = rooms.pop()
            for t in reversed(cut(T, size)):  # the last queries see all keys, so that there is something to add to
                block(*part, t, room)
            rooms.append(room)

        self._workers.each(some, parts)
        return [x.swapaxes(2, 3) for x in dqs], [x.swapaxes(2, 3) for x in dks], dv.swapaxes(2, 3), along

    def _by_features(self, x: FloatArray) -> FloatArray:
        """Allocate (B, H, d, T) for the gradient of (B, H, T, d), lying as (H, d, B, T), as products take it."""
        B, H, T, d = x.shape
        return self._workspace.empty((H, d, B, T), x.dtype).transpose(2, 0, 1, 3)


def _add(total: FloatArray, a: FloatArray, b: FloatArray, first: bool) -> None:
    """Add a b to the total, or begin it."""
    if first:
        np.matmul(a, b, out=total)
    else:
        total += a @ b


def _visible(mask: Any, bias: Any, shape: tuple[int, int, int, int], causal: bool, pairs: bool = True) -> bool:
    """Whether a mask and a bias are what attention over (B, H, T, S) can take."""
    B, H, T, S = shape
    if (causal and S < T) or (mask is not None and mask.dtype != np.bool_) or hides(bias):
        return False
    return all(x is None or covers(x, (B, mask_heads(x, H) if pairs else H, T, S)) for x in (mask, bias))
