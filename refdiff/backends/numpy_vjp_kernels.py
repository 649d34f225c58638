"""Fast twins of the derivatives, and of the loss, for NumPy: what training needs beside the kernels of a forward pass.

The rules are those of numpy_kernels.py: a layer's signature and result, `NotImplemented` for what is not served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff import layers
from refdiff.backends.numpy_attention_kernels import (
    QUERIES,
    by_map,
    covers,
    fits,
    mask_heads,
    part_of,
    softmax_rows,
)
from refdiff.backends.numpy_kernels import NumpyKernels
from refdiff.backends.numpy_row_kernels import COLUMNS, ELEMENTS, WORTH_A_THREAD, FloatArray, cut
from refdiff.layers.diff_attention import sum_to

BLOCK = 2**17
"""How many scores of one map the way back holds: it has four arrays of them at a time, the way forward two."""


class NumpyVjpKernels(NumpyKernels):
    """All kernels of one model, those of the way back included."""

    def linear_vjp(self, g: FloatArray, x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> Any:
        """Compute two products, each cut over the rows of its result; ∂L/∂x comes feature-major, as from `linear`."""
        if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1] or 0 in (x.size, weight.size):
            return NotImplemented
        if g.shape != (*x.shape[:-1], weight.shape[0]):
            return NotImplemented
        outputs, K = weight.shape
        rows, flat = g.reshape(-1, outputs), x.reshape(-1, K)
        dx, dw = np.empty((K, len(flat)), np.result_type(g, weight)), np.empty((outputs, K), np.result_type(g, x))
        self._product(weight.T, rows.T, dx)
        self._product(rows.T, flat, dw)
        return dx.T.reshape(x.shape), dw, None if bias is None else rows.sum(axis=0)

    def swiglu_vjp(
        self,
        g: FloatArray,
        x: FloatArray,
        gate_proj: Mapping[str, FloatArray],
        up_proj: Mapping[str, FloatArray],
        down_proj: Mapping[str, FloatArray],
        *,
        act: str = "silu",
        linear: Callable[..., Any] = layers.linear,
        linear_vjp: Callable[..., Any] = layers.linear_vjp,
        activation: Callable[..., Any] = layers.activation,
        activation_vjp: Callable[..., Any] = layers.activation_vjp,
    ) -> Any:
        """Go through silu and its derivative piece by piece: with s = σ(a), silu′(a) = s (1 + a (1 − s))."""
        if act not in ("silu", "swish"):
            return NotImplemented
        gate, up = linear(x, **gate_proj), linear(x, **up_proj)
        hidden, s = self._pieces(_gated, 2, gate, up)
        h, ddown, _ = linear_vjp(g, hidden, **down_proj)
        dgate_in, dup_in = self._pieces(_gated_vjp, 2, gate, up, s, h)
        dx_up, dup, _ = linear_vjp(dup_in, x, **up_proj)
        dx_gate, dgate, _ = linear_vjp(dgate_in, x, **gate_proj)
        return dx_gate + dx_up, {"weight": dgate}, {"weight": dup}, {"weight": ddown}

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
        B, H, T = q1.shape[:3]
        lambdas = np.asarray(lambda_, dtype=q1.dtype)
        if not fits(q1, k1, q2, k2, v) or not covers(lambdas, (B, H, T, 1)) or g.shape != (B, H, T, v.shape[3]):
            return NotImplemented
        if not _visible(mask, bias, (B, H, T, k1.shape[2]), causal):
            return NotImplemented
        weights = np.broadcast_to(-lambdas, (B, H, T, 1))
        (m1, m2), (z1, z2) = by_map(mask, H), by_map(bias, H)
        maps = [(q1, k1, m1, z1), (q2, k2, m2, z2)]
        (dq1, dq2), (dk1, dk2), dv, along = self._attention_back(g, maps, v, weights, causal)
        return dq1, dk1, dq2, dk2, dv, sum_to(-along, lambdas.shape)

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
        if not fits(q, k, q, k, v):
            return NotImplemented
        B, H, T, _ = q.shape
        e = v.shape[3]
        if g.shape != (B, T, H * e) or not _visible(mask, bias, (B, H, T, k.shape[2]), causal, pairs=False):
            return NotImplemented
        heads = g.reshape(B, T, H, e).swapaxes(1, 2)
        m, z = (None if x is None else x[(None,) * (4 - x.ndim)] for x in (mask, bias))
        (dq,), (dk,), dv, _ = self._attention_back(heads, [(q, k, m, z)], v, None, causal)
        return dq, dk, dv

    def embedding_vjp(self, g: FloatArray, ids: NDArray[np.integer[Any]], weight: FloatArray) -> Any:
        """Sort the tokens by their ids, and sum each run."""
        flat = ids.reshape(-1)
        if weight.ndim != 2 or g.shape != (*ids.shape, weight.shape[1]) or flat.size == 0:
            return NotImplemented
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        if ordered[0] < 0 or ordered[-1] >= len(weight):
            return NotImplemented
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        rows, table = g.reshape(flat.size, -1), np.zeros(weight.shape, g.dtype)

        def part(start: int, stop: int) -> None:
            gathered = np.ascontiguousarray(rows[:, start:stop])[order]
            table[ordered[starts], start:stop] = np.add.reduceat(gathered, starts, axis=0)

        self._workers.split(weight.shape[1], part, align=16)
        return None, table

    def cross_entropy(self, logits: FloatArray, targets: NDArray[Any], *, ignore_index: int = -100) -> Any:
        """Go through blocks of tokens, so that no second array as large as the logits is made."""
        flat = _targets(logits, targets, ignore_index)
        if flat is None:
            return NotImplemented
        z, t, keep = flat
        losses = np.empty(len(t), logits.dtype)

        def block(at: slice) -> None:
            top, sums, _ = _exponentials(z[:, at])
            picked = z[t[at], np.arange(at.start, at.stop)] - top
            np.subtract(np.log(sums), picked, out=losses[at])

        self._workers.each(block, cut(len(t), COLUMNS))
        return losses[keep].sum() / logits.dtype.type(np.count_nonzero(keep))

    def cross_entropy_vjp(
        self, g: FloatArray, logits: FloatArray, targets: NDArray[Any], *, ignore_index: int = -100
    ) -> Any:
        """Write the probabilities block by block into the result, and take 1 away at each target."""
        flat = _targets(logits, targets, ignore_index)
        if flat is None or np.ndim(g):
            return NotImplemented
        z, t, keep = flat
        share = keep.astype(logits.dtype) * (g / logits.dtype.type(np.count_nonzero(keep)))
        dz = np.empty_like(z)

        def block(at: slice) -> None:
            out = dz[:, at]
            _, sums, parts = _exponentials(z[:, at], out)
            scale = share[at] / sums
            for part in parts:
                out[part] *= scale
            out[t[at], np.arange(len(scale))] -= share[at]

        self._workers.each(block, cut(len(t), COLUMNS))
        return dz.T.reshape(logits.shape), None

    def _attention_back(
        self,
        g: FloatArray,
        maps: Sequence[tuple[FloatArray, FloatArray, Any, Any]],
        v: FloatArray,
        weights: FloatArray | None,
        causal: bool,
    ) -> tuple[list[FloatArray], list[FloatArray], FloatArray, FloatArray]:
        """Pull g (B, H, T, e) back through (A₁ + w A₂) V, or through A V where there are no `weights` w (B, H, T, 1).

        A block holds a few queries with all the keys that they may see. So its softmax is whole: its maxima and sums
        come again with its scores, and need not be kept from the way forward. With G = g Vᵀ and ρ_i = rowsum(G ⊙ A_i),
        ∂L/∂S_i = w_i A_i ⊙ (G − ρ_i) and ∂L/∂w = ρ₂; w_i and 1/√d go to the rows of the products, which are shorter.
        One thread has all queries of a key head, and adds up what comes back to its keys: always in the same order.

        Returns the gradients of every q, of every k, of v, and ρ of the last map.
        """
        B, H, T, e = g.shape
        K, S = v.shape[1:3]
        G, root = H // K, math.sqrt(maps[0][0].shape[3])
        dqs = [np.empty(q.shape, q.dtype) for q, *_ in maps]
        dks = [np.zeros(k.shape, k.dtype) for _, k, *_ in maps]
        dv, along = np.zeros(v.shape, v.dtype), np.empty((B, H, T, 1), g.dtype)
        size = min(max(BLOCK // (G * S), 1), QUERIES)

        def block(b: int, k: int, t: slice) -> None:
            h, keys = slice(k * G, k * G + G), S - T + t.stop if causal else S
            n = t.stop - t.start
            hidden = np.triu(np.ones((n, n), dtype=np.bool_), 1) if causal else None
            rows = []
            for q, key, m, z in maps:
                at = (slice(b, b + 1), h, t, slice(keys))
                m, z = (None if x is None else part_of(x, at) for x in (m, z))
                p, sums = softmax_rows(q[b : b + 1, h, t], key[b : b + 1, k : k + 1, :keys], m, z, hidden)
                p /= sums
                rows.append(p.reshape(-1, keys))
            gradient = g[b, h, t].reshape(-1, e)
            w = None if weights is None else weights[b, h, t].reshape(-1, 1)
            both = rows[0]
            if w is not None:
                both = rows[1] * w
                both += rows[0]
            dv[b, k, :keys] += both.T @ gradient
            back = gradient @ v[b, k, :keys].T
            for i, (p, (q, key, *_)) in enumerate(zip(rows, maps, strict=True)):
                dots = np.vecdot(back, p)[:, None]
                ds = back - dots if i + 1 < len(maps) else np.subtract(back, dots, out=back)
                ds *= p
                scale = 1 / root if i == 0 or w is None else w / root
                product = ds @ key[b, k, :keys]
                product *= scale
                dqs[i][b, h, t] = product.reshape(G, n, -1)
                dks[i][b, k, :keys] += ds.T @ (q[b, h, t].reshape(G * n, -1) * scale)
            along[b, h, t] = dots.reshape(G, n, 1)

        def head(at: tuple[int, int]) -> None:
            for start in range(0, T, size):
                block(*at, slice(start, min(start + size, T)))

        self._workers.each(head, [(b, k) for b in range(B) for k in range(K)])
        return dqs, dks, dv, along

    def _product(self, a: FloatArray, b: FloatArray, out: FloatArray) -> None:
        """Compute a b, cut over the rows of a."""

        def part(start: int, stop: int) -> None:
            np.matmul(a[start:stop], b, out=out[start:stop])

        if out.size * len(b) < WORTH_A_THREAD:
            part(0, len(a))
        else:
            self._workers.split(len(a), part, align=16)


def _exponentials(z: FloatArray, out: FloatArray | None = None) -> tuple[FloatArray, FloatArray, list[slice]]:
    """Return the largest of each column and the sum of e^(z − largest), which goes to `out`; and the parts it took."""
    top = z.max(axis=0)
    sums, parts = np.zeros_like(top), cut(len(z), max(ELEMENTS // len(top), 1))
    ones = np.ones(len(z), z.dtype)
    for part in parts:
        shifted = np.subtract(z[part], top, out=None if out is None else out[part])
        np.exp(shifted, out=shifted)
        sums += ones[part] @ shifted
    return top, sums, parts


def _gated(outs: list[FloatArray], gate: FloatArray, up: FloatArray) -> None:
    """Write silu(gate) ⊙ up, and σ(gate)."""
    hidden, s = outs
    np.negative(gate, out=s)
    with np.errstate(over="ignore"):  # e^−x = ∞ gives the right limit, 0
        np.exp(s, out=s)
    s += 1
    np.divide(gate, s, out=hidden)
    hidden *= up
    np.divide(1, s, out=s)


def _gated_vjp(outs: list[FloatArray], gate: FloatArray, up: FloatArray, s: FloatArray, h: FloatArray) -> None:
    dgate, dup = outs
    np.multiply(gate, s, out=dup)  # silu(a)
    np.subtract(1, s, out=dgate)
    dgate *= dup
    dgate += s  # s + a s (1 − s)
    dgate *= up
    dgate *= h
    dup *= h


def _visible(mask: Any, bias: Any, shape: tuple[int, int, int, int], causal: bool, pairs: bool = True) -> bool:
    """Whether a mask and a bias are what attention over (B, H, T, S) can take."""
    B, H, T, S = shape
    if (causal and S < T) or (mask is not None and mask.dtype != np.bool_):
        return False
    return all(x is None or covers(x, (B, mask_heads(x, H) if pairs else H, T, S)) for x in (mask, bias))


def _targets(
    logits: FloatArray, targets: NDArray[Any], ignore_index: int
) -> tuple[FloatArray, NDArray[Any], NDArray[np.bool_]] | None:
    """Return logits as columns, the target of each (0 where there is none), and where there is one; None if nowhere."""
    V = logits.shape[-1]
    if logits.shape[:-1] != targets.shape or logits.size == 0:
        return None
    t = targets.reshape(-1)
    keep = t != ignore_index
    t = np.where(keep, t, 0)
    if t.min() < 0 or t.max() >= V or not keep.any():
        return None
    return logits.reshape(-1, V).T, t, keep
