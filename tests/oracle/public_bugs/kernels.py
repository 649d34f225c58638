"""Two small attention kernels in float32 whose stages can be replaced: plain attention and differential attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from refdiff.oracle import Spec
from refdiff.oracle.rounding import round_to

Numpy = np.ndarray[Any, Any]
Inputs = dict[str, Numpy]
Edits = dict[str, Callable[..., Any]]


def softmax(z: Numpy, seen: Numpy, sink: Numpy | None, v: Numpy) -> tuple[Numpy, Numpy]:
    """Return the output and the log-sum-exp; a row that sees no key has 0 and −∞."""
    z = np.where(seen, z, -np.inf)
    top = np.max(z, axis=-1, keepdims=True)
    top = top if sink is None else np.maximum(top, sink)
    safe = np.where(np.isneginf(top), np.float32(0), top)
    p = np.exp(z - safe)
    total = np.sum(p, axis=-1, keepdims=True) + (0 if sink is None else np.exp(sink - safe))
    lse = np.log(total) + safe
    return p @ v / np.where(total == 0, np.float32(1), total), lse


def split(z: Numpy, seen: Numpy, sink: Numpy | None, v: Numpy, *, sizes: int = 64) -> list[tuple[Numpy, Numpy]]:
    """Return the output and the log-sum-exp of each split of the keys; only the first has the sink."""
    starts = range(0, z.shape[-1], sizes)
    return [
        softmax(z[..., s : s + sizes], seen[..., s : s + sizes], None if s else sink, v[:, :, s : s + sizes])
        for s in starts
    ]


def merge(parts: list[tuple[Numpy, Numpy]]) -> tuple[Numpy, Numpy]:
    """Merge the splits' outputs by their log-sum-exps."""
    lses = np.stack([lse for _, lse in parts])
    top = np.max(lses, axis=0)
    weights = np.exp(lses - np.where(np.isneginf(top), np.float32(0), top))
    total = np.sum(weights, axis=0)
    out = sum(w * o for w, (o, _) in zip(weights, parts, strict=True))
    return out / np.where(total == 0, np.float32(1), total), np.log(total) + top


def rotate(spec: Spec, x: Numpy, positions: Numpy) -> Numpy:
    """Rotate heads by their positions, in pairs of halves or of neighbors."""
    if spec.rope == "none":
        return x
    d = x.shape[-1]
    angle = positions[:, None] * (spec.rope_theta ** (-np.arange(0, d, 2) / d))[None, :]
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    out = np.empty_like(x)
    first, second = (slice(0, d // 2), slice(d // 2, d)) if spec.rope == "halves" else (slice(0, d, 2), slice(1, d, 2))
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def visible(spec: Spec, x: Inputs, T: int, S: int) -> Numpy:
    """Return which keys each query sees: (B or 1, h or 1, T, S)."""
    s, t = np.arange(S)[None, :], np.arange(T)[:, None] + (S - T if spec.causal != "top_left" else 0)
    seen = np.ones((T, S), dtype=bool) if spec.causal == "none" else s <= t
    seen = seen if spec.window is None else seen & (s > t - spec.window)
    seen = seen[None, None]
    if "mask" in x:
        seen = seen & x["mask"]
    if "key_mask" in x:
        seen = seen & x["key_mask"][:, None, None, :]
    if "lengths" in x:
        seen = np.arange(S)[None, None, None, :] < x["lengths"][:, None, None, None]
    return np.asarray(seen)


def load(x: Inputs) -> tuple[Numpy, Numpy, Numpy]:
    """Return q, k and v; pages are gathered to the longest sequence."""
    if "k_pages" not in x:
        return x["q"], x["k"], x["v"]
    return x["q"], gather(x["k_pages"], x["block_table"]), gather(x["v_pages"], x["block_table"])


def gather(pages: Numpy, table: Numpy) -> Numpy:
    """Return the pages of each sequence as (N, K, S, d)."""
    found = pages[table]
    N, n, K, p, d = found.shape
    return found.transpose(0, 2, 1, 3, 4).reshape(N, K, n * p, d)


def score(z: Numpy, spec: Spec, x: Inputs, cap: Callable[[Numpy, float], Numpy]) -> Numpy:
    """Return the capped scores with their bias."""
    z = z if spec.softcap is None else cap(z, spec.softcap)
    return z + x["bias"] if "bias" in x else z


def dscore(z: Numpy, c: float | None) -> Numpy | float:
    """Return the derivative of the cap."""
    return 1.0 if c is None else 1 - np.tanh(z / c) ** 2


def ungroup(g: Numpy, n: int) -> Numpy:
    """Return the sum over the query heads of each key head."""
    B, H, S, d = g.shape
    return g.reshape(B, H // n, n, S, d).sum(axis=2)


PLAIN: Edits = {
    "load": load,
    "scale": lambda z, spec, d: z * (d**-0.5 if spec.scale is None else spec.scale),
    "rotate_keys": rotate,
    "group": lambda x, n: np.repeat(x, n, axis=1),
    "cap": lambda z, c: c * np.tanh(z / c),
    "score": score,
    "visible": visible,
    "sink": lambda sinks, shape: sinks[None, :, None, None],
    "attend": softmax,
    "finish": lambda out, x: out,
    # The backward pass:
    "dvisible": lambda seen, spec: seen,
    "dscore": dscore,
    "read_dout": lambda dout: dout,
    "dp": lambda dout, v, spec: dout @ v.swapaxes(-1, -2),
    "saved": lambda out, lse, parts: (out, lse),
    "ungroup": ungroup,
    "dq": lambda dq: dq,
    "dsink": lambda terms, storage: terms.sum(axis=(0, 2, 3)),
}


def plain(spec: Spec, x: Inputs, dout: Numpy | None = None, *, storage: str = "float32", **edits: Any) -> Inputs:
    """Return out and, with `dout`, the gradients of plain attention, with some stages replaced."""
    on = SimpleNamespace(**(PLAIN | edits))
    x = {name: y.astype(np.float32) if y.dtype.kind == "f" else y for name, y in x.items()}
    with np.errstate(all="ignore"):
        q, k, v = on.load(x)
        T, S, n = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
        q, k = rotate(spec, q, np.arange(S - T, S)), on.rotate_keys(spec, k, np.arange(S))
        keys, values = on.group(k, n), on.group(v, n)
        scaled = on.scale(q @ keys.swapaxes(-1, -2), spec, q.shape[-1]).astype(np.float32)
        z = on.score(scaled, spec, x, on.cap).astype(np.float32)
        seen = on.visible(spec, x, T, S)
        seen = np.broadcast_to(seen, (*seen.shape[:-1], z.shape[-1]))
        sink = on.sink(x["sinks"], z.shape) if "sinks" in x else None
        out, _ = on.attend(z, seen, sink, values)
        found = {"out": on.finish(out, x)}
        if dout is not None:
            found |= _backward(
                spec, dout.astype(np.float32), on, (q, keys, values, n), (scaled, z, seen, sink), storage
            )
    return {name: round_to(y.astype(np.float32), storage) for name, y in found.items()}


def _backward(
    spec: Spec, dout: Numpy, on: Any, operands: tuple[Any, ...], scores: tuple[Any, ...], storage: str
) -> Inputs:
    q, k, v, n = operands
    scaled, z, seen, sink = scores
    dout = on.read_dout(dout)
    out, lse = on.saved(*on.attend(z, seen, sink, v), (z, seen, sink, v))
    seen = on.dvisible(seen, spec)
    p = np.where(seen, np.exp(z - lse), np.float32(0))
    delta = np.sum(dout * out, axis=-1, keepdims=True)
    dz = p * (on.dp(dout, v, spec) - delta) * on.dscore(scaled, spec.softcap)
    dz = on.scale(dz, spec, q.shape[-1])
    grads = {"dq": on.dq(dz @ k), "dk": on.ungroup(dz.swapaxes(-1, -2) @ q, n)}
    grads["dv"] = on.ungroup(p.swapaxes(-1, -2) @ dout, n)
    if sink is not None:
        grads["dsinks"] = on.dsink(-np.exp(sink - lse) * delta, storage)
    return grads


def halves(x: Numpy) -> tuple[Numpy, Numpy]:
    """Return the first half of the heads and the second."""
    return x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]


DIFFERENTIAL: Edits = {
    "exponential": np.exp,
    "norm": lambda x, eps: x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps),
}


def differential(spec: Spec, x: Inputs, dout: Numpy | None = None, *, storage: str = "float32", **edits: Any) -> Inputs:
    """Return out of `hf_diffllama` without RoPE, with some stages replaced."""
    on = SimpleNamespace(**(DIFFERENTIAL | edits))
    x = {name: y.astype(np.float32) for name, y in x.items()}
    n = spec.query_heads // spec.key_heads
    init = np.float32(0.8 - 0.6 * math.exp(-0.3 * spec.layer))
    lambda_ = on.exponential(x["lambda_q1"] @ x["lambda_k1"]) - on.exponential(x["lambda_q2"] @ x["lambda_k2"]) + init
    v = np.repeat(np.concatenate(halves(x["v"]), axis=-1), n, axis=1)
    (q1, q2), (k1, k2) = halves(x["q"]), halves(x["k"])
    seen = visible(spec, x, q1.shape[2], k1.shape[2])
    z1, z2 = (
        q @ np.repeat(k, n, axis=1).swapaxes(-1, -2) * np.float32(spec.head_dim**-0.5) for q, k in ((q1, k1), (q2, k2))
    )
    out = softmax(z1, seen, None, v)[0] - lambda_ * softmax(z2, seen, None, v)[0]
    return {"out": round_to(on.norm(out, np.float32(spec.norm_eps)) * (1 - init), storage)}
