"""Fast twins of the derivatives, and of the loss, for NumPy: what training needs beside the kernels of a forward pass.

The rules are those of numpy_kernels.py: a layer's signature and result, `NotImplemented` for what is not served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff import layers
from refdiff.backends import laid_over, untouched
from refdiff.backends.numpy_attention_vjp_kernels import NumpyAttentionVjpKernels
from refdiff.backends.numpy_row_kernels import (
    COLUMNS,
    ELEMENTS,
    FLOATS,
    WORTH_A_THREAD,
    FloatArray,
    alike,
    cut,
    lies_by_features,
)
from refdiff.layers.linear import named_grads

DEEP = 6
"""A product with so many times more terms than its result is long is cut over the terms."""
TERMS = 1024
"""Into parts of so many."""


class NumpyVjpKernels(NumpyAttentionVjpKernels):
    """All kernels of one model, those of the way back included; `cross_entropy_both` is `cross_entropy` and its vjp."""

    def linear_vjp(self, g: FloatArray, x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> Any:
        """Compute two products, each cut over the rows of its result; ∂L/∂x comes feature-major, as from `linear`."""
        if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1] or 0 in (x.size, weight.size):
            return NotImplemented
        if g.shape != (*x.shape[:-1], weight.shape[0]) or not alike(g, x, weight, bias):
            return NotImplemented
        outputs, K = weight.shape
        rows, flat = g.reshape(-1, outputs), x.reshape(-1, K)
        dx = self._workspace.empty((K, len(flat)), g.dtype)
        dw = self._workspace.empty((outputs, K), g.dtype)
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
        """Go through silu and its derivative piece by piece: with s = σ(a), silu′(a) = s (1 + a (1 − s)).

        What lies feature-major goes back through both projections in one product, Gₐ Wₐ + G_u W_u = [Gₐ G_u] [Wₐ; W_u].
        """
        if act not in ("silu", "swish") or laid_over(activation) or laid_over(activation_vjp):
            return NotImplemented
        if not alike(g, x, *(p["weight"] for p in (gate_proj, up_proj, down_proj))):
            return NotImplemented
        gate, up = linear(x, **gate_proj), linear(x, **up_proj)
        hidden, s = self._pieces(_gated, 2, gate, up)
        h, ddown, ddown_bias = linear_vjp(g, hidden, **down_proj)
        block = self._workspace.empty((2, gate.size), gate.dtype)
        dgate_in, dup_in = self._pieces(_gated_vjp, 2, gate, up, s, h, into=block)
        n, projections = gate.shape[-1], (gate_proj, up_proj)
        biases = [p["bias"] for p in projections if p.get("bias") is not None]
        if untouched(linear_vjp) and lies_by_features(gate) and len(biases) != 1:
            both = block.reshape(2 * n, -1).T.reshape(*x.shape[:-1], 2 * n)
            weight, bias = (
                np.concatenate([p["weight"] for p in projections]),
                np.concatenate(biases) if biases else None,
            )
            dx, dw, db = linear_vjp(both, x, weight, bias)
            dgate, dup = dw[:n], dw[n:]
            dgate_bias, dup_bias = (None, None) if db is None else (db[:n], db[n:])
        else:
            dx_up, dup, dup_bias = linear_vjp(dup_in, x, **up_proj)
            dx_gate, dgate, dgate_bias = linear_vjp(dgate_in, x, **gate_proj)
            (dx,) = self._pieces(_added, 1, dx_gate, dx_up)
        return (
            dx,
            named_grads(dgate, dgate_bias),
            named_grads(dup, dup_bias),
            named_grads(ddown, ddown_bias),
        )

    def embedding_vjp(self, g: FloatArray, ids: NDArray[np.integer[Any]], weight: FloatArray) -> Any:
        """Sort the tokens by their ids, and sum each run."""
        flat = ids.reshape(-1)
        if weight.ndim != 2 or g.shape != (*ids.shape, weight.shape[1]) or flat.size == 0 or ids.dtype.kind not in "iu":
            return NotImplemented
        if not alike(g, weight):
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
        both = self.cross_entropy_both(g, logits, targets, ignore_index=ignore_index)
        return both if both is NotImplemented else (both[1], None)

    def cross_entropy_both(
        self, g: FloatArray, logits: FloatArray, targets: NDArray[Any], *, ignore_index: int = -100
    ) -> Any:
        """Compute the loss and its gradient from the same exponentials, which are most of the work of either."""
        flat = _targets(logits, targets, ignore_index)
        if flat is None or np.ndim(g):
            return NotImplemented
        z, t, keep = flat
        count = logits.dtype.type(np.count_nonzero(keep))
        share = keep.astype(logits.dtype) * (g / count)
        losses, dz = np.empty(len(t), logits.dtype), np.empty_like(z)

        def block(at: slice) -> None:
            out = dz[:, at]
            picked = t[at], np.arange(at.stop - at.start)
            top, sums, parts = _exponentials(z[:, at], out)
            np.subtract(np.log(sums), z[:, at][picked] - top, out=losses[at])
            scale = share[at] / sums
            for part in parts:
                out[part] *= scale
            out[picked] -= share[at]

        self._workers.each(block, cut(len(t), COLUMNS))
        return losses[keep].sum() / count, dz.T.reshape(logits.shape)

    def _product(self, a: FloatArray, b: FloatArray, out: FloatArray) -> None:
        """Compute a b, cut over the rows of a or the columns of b, the longer: what is not cut, each thread packs.

        A small result of many terms, as the gradient of a weight, is cut over the terms, into sums that are added.
        """
        if len(b) >= DEEP * max(out.shape) and out.size * len(b) >= WORTH_A_THREAD:
            self._sum_of_products(a, b, out)
            return
        by_columns = out.shape[1] > len(out)

        def part(start: int, stop: int) -> None:
            if by_columns:
                np.matmul(a, b[:, start:stop], out=out[:, start:stop])
            else:
                np.matmul(a[start:stop], b, out=out[start:stop])

        size = max(out.shape)
        if out.size * len(b) < WORTH_A_THREAD:
            part(0, size)
        else:
            self._workers.split(size, part, align=16)

    def _sum_of_products(self, a: FloatArray, b: FloatArray, out: FloatArray) -> None:
        parts = cut(len(b), TERMS)
        sums = [out, *(np.empty_like(out) for _ in parts[1:])]
        self._workers.each(lambda n: np.matmul(a[:, parts[n]], b[parts[n]], out=sums[n]), range(len(parts)))
        for more in sums[1:]:  # in the same order and parts, however many threads there are
            out += more


def _exponentials(z: FloatArray, out: FloatArray | None = None) -> tuple[FloatArray, FloatArray, list[slice]]:
    """Return the largest of each column and the sum of e^(z − largest), which goes to `out`; and the parts it took."""
    top = z.max(axis=0)
    sums, parts = np.zeros_like(top), cut(len(z), max(ELEMENTS // len(top), 1))
    ones = np.ones(len(z), z.dtype)
    for part in parts:
        shifted = np.subtract(z[part], top, out=None if out is None else out[part])
        np.exp(shifted, out=shifted)
        sums += np.dot(ones[part], shifted)
    return top, sums, parts


def _gated(outs: list[FloatArray], gate: FloatArray, up: FloatArray) -> None:
    """Write silu(gate) ⊙ up, and σ(gate)."""
    hidden, s = outs
    np.negative(gate, out=s)
    with np.errstate(over="ignore"):  # e^−x = ∞ gives the right limit, 0
        np.exp(s, out=s)
    s += 1
    np.divide(1, s, out=s)
    np.multiply(gate, s, out=hidden)
    hidden *= up


def _gated_vjp(outs: list[FloatArray], gate: FloatArray, up: FloatArray, s: FloatArray, h: FloatArray) -> None:
    dgate, dup = outs
    np.multiply(gate, s, out=dup)  # silu(a)
    np.subtract(1, s, out=dgate)
    dgate *= dup
    dgate += s  # s + a s (1 − s)
    dgate *= up
    dgate *= h
    dup *= h


def _added(outs: list[FloatArray], a: FloatArray, b: FloatArray) -> None:
    np.add(a, b, out=outs[0])


def _targets(
    logits: FloatArray, targets: NDArray[Any], ignore_index: int
) -> tuple[FloatArray, NDArray[Any], NDArray[np.bool_]] | None:
    """Return logits as columns, the target of each (0 where there is none), and where there is one; None if nowhere."""
    V = logits.shape[-1]
    if logits.shape[:-1] != targets.shape or logits.size == 0 or logits.dtype not in FLOATS:
        return None
    t = targets.reshape(-1)
    keep = t != ignore_index
    t = np.where(keep, t, 0)
    if t.min() < 0 or t.max() >= V or not keep.any():
        return None
    return logits.reshape(-1, V).T, t, keep
