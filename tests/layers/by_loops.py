"""The equations once more: number by number, in Python loops, in 40 digits.

Written from the papers and from the docstrings, not from the layers. Arrays are NumPy arrays of mpmath numbers, so that
indexing reads as in the layers; nothing else of NumPy is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import numpy as np

DIGITS = mpmath.MPContext()
DIGITS.dps = 40

Exact = np.ndarray[Any, Any]


def exact(x: Any) -> Any:
    """Every number as it is, in 40 digits from here on."""
    return np.vectorize(DIGITS.mpf, otypes=[object])(np.asarray(x))


def rounded(x: Any) -> np.ndarray:
    """Back to float64."""
    return np.asarray(x).astype(np.float64)


def filled(shape: Sequence[int], entry: Callable[..., Any]) -> Exact:
    """The array whose entries are `entry(i, j, ...)`."""
    result = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        result[index] = entry(*index)
    return result


def linear(x: Exact, weight: Exact, bias: Exact | None = None) -> Exact:
    """y_to = Σ_i x_ti w_oi + b_o, for a matrix x."""

    def entry(t: int, o: int) -> Any:
        total = DIGITS.fsum(x[t, i] * weight[o, i] for i in range(x.shape[1]))
        return total if bias is None else total + bias[o]

    return filled((x.shape[0], weight.shape[0]), entry)


def rms_norm(x: Exact, weight: Exact | None, eps: Any) -> Exact:
    """y_td = x_td / √(Σ_e x_te² / D + ε) · w_d, for an array x of any shape."""

    def entry(*index: int) -> Any:
        row = x[index[:-1]]
        root = DIGITS.sqrt(DIGITS.fsum(e * e for e in row) / len(row) + DIGITS.mpf(eps))
        return x[index] / root * (1 if weight is None else weight[index[-1]])

    return filled(x.shape, entry)


def softmax(scores: Sequence[Any], visible: Sequence[bool]) -> list[Any]:
    """a_s = m_s exp(z_s) / Σ_u m_u exp(z_u) of one row; zeros where nothing is visible."""
    powers = [DIGITS.exp(z) if seen else DIGITS.mpf(0) for z, seen in zip(scores, visible, strict=True)]
    total = DIGITS.fsum(powers)
    return [power / total if any(visible) else DIGITS.mpf(0) for power in powers]


def attention(q: Exact, k: Exact, visible: np.ndarray, bias: np.ndarray) -> Exact:
    """A_bhts of softmax(Q Kᵀ / √d + bias), query head h with key head h // (H / K)."""
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    result = np.empty((B, H, T, S), dtype=object)
    for b, h, t in np.ndindex(B, H, T):
        key = k[b, h // (H // K)]
        dots = [DIGITS.fsum(q[b, h, t, i] * key[s, i] for i in range(d)) for s in range(S)]
        scores = [dot / DIGITS.sqrt(d) + DIGITS.mpf(float(bias[b, h, t, s])) for s, dot in enumerate(dots)]
        result[b, h, t] = softmax(scores, visible[b, h, t])
    return result


def diff_attention(
    q1: Exact, k1: Exact, q2: Exact, k2: Exact, v: Exact, lambda_: Exact, visible: np.ndarray, bias: np.ndarray
) -> Exact:
    """o_bhte = Σ_s (A₁ − λ A₂)_bhts v_b(h // n)se; `visible` and `bias` hold the heads of A₁, then those of A₂."""
    H, K = q1.shape[1], k1.shape[1]
    a1 = attention(q1, k1, visible[:, :H], bias[:, :H])
    a2 = attention(q2, k2, visible[:, H:], bias[:, H:])

    def entry(b: int, h: int, t: int, e: int) -> Any:
        return DIGITS.fsum(
            (a1[b, h, t, s] - lambda_[b, h, t] * a2[b, h, t, s]) * v[b, h // (H // K), s, e] for s in range(v.shape[2])
        )

    return filled((*q1.shape[:3], v.shape[3]), entry)


def diff_heads_hf(
    q: Exact, k: Exact, v: Exact, lambda_: Any, lambda_init: Any, eps: Any, visible: np.ndarray, bias: np.ndarray
) -> Exact:
    """Head i with head i + H/2, read off `modeling_diffllama.py`: `v` has all K heads of width d, not yet joined."""
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    maps = attention(q, k, visible, bias)
    result = np.empty((B, T, H * d), dtype=object)
    for b, t, i in np.ndindex(B, T, H // 2):
        weights = [maps[b, i, t, s] - lambda_ * maps[b, i + H // 2, t, s] for s in range(S)]
        j = i // (H // K)
        low = [DIGITS.fsum(weights[s] * v[b, j, s, e] for s in range(S)) for e in range(d)]
        high = [DIGITS.fsum(weights[s] * v[b, j + K // 2, s, e] for s in range(S)) for e in range(d)]
        head = rms_norm(np.array(low + high, dtype=object), None, eps)
        for e in range(2 * d):
            result[b, t, i * 2 * d + e] = (1 - DIGITS.mpf(lambda_init)) * head[e]
    return result


def _map(q: Exact, k: Exact, h: int, c: int, visible: np.ndarray, bias: np.ndarray) -> Exact:
    """The attention map of query head h over key head c alone."""
    one = slice(h, h + 1)
    return attention(q[:, one], k[:, c : c + 1], visible[:, one], bias[:, one])[:, 0]


def _side_by_side(heads: Sequence[Exact]) -> Exact:
    """Heads (B, T, e) as (B, T, H e)."""
    B, T, e = heads[0].shape
    return filled((B, T, len(heads) * e), lambda b, t, n: heads[n // e][b, t, n % e])


def _weighted(weights: Exact, v: Exact) -> Exact:
    """o_bte = Σ_s w_bts v_bse."""
    B, T, S = weights.shape
    return filled((B, T, v.shape[2]), lambda b, t, e: DIGITS.fsum(weights[b, t, s] * v[b, s, e] for s in range(S)))


def diff_heads_paper(
    q: Exact, k: Exact, v: Exact, lambda_: Any, weight: Exact, lambda_init: Any, eps: Any, visible: np.ndarray,
    bias: np.ndarray,
) -> Exact:  # fmt: skip
    """Head 2i with head 2i + 1, read off `multihead_flashdiff_1.py`: `v` has K/2 heads of width 2d."""
    H, K = q.shape[1], k.shape[1]
    heads = []
    for i in range(H // 2):
        j = i // (H // K)
        first = _map(q, k, 2 * i, 2 * j, visible, bias)
        second = _map(q, k, 2 * i + 1, 2 * j + 1, visible, bias)
        head = rms_norm(_weighted(first - lambda_ * second, v[:, j]), weight, eps)
        heads.append((1 - DIGITS.mpf(lambda_init)) * head)
    return _side_by_side(heads)


def diff_heads_v2(q: Exact, k: Exact, v: Exact, lambda_: Exact, visible: np.ndarray, bias: np.ndarray) -> Exact:
    """Output i of queries 2i and 2i + 1, read off `multihead_flashdiffv2.py`: `lambda_` is (B, h, T)."""
    h, K = q.shape[1] // 2, k.shape[1]
    heads = []
    for i in range(h):
        j = i // (h // K)
        first, second = (_map(q, k, m, j, visible, bias) for m in (2 * i, 2 * i + 1))
        heads.append(_weighted(first - lambda_[:, i, :, None] * second, v[:, j]))
    return _side_by_side(heads)


def plain_heads(q: Exact, k: Exact, v: Exact, visible: np.ndarray, bias: np.ndarray) -> Exact:
    """Output i of query i alone."""
    group = q.shape[1] // k.shape[1]
    return _side_by_side(
        [_weighted(_map(q, k, i, i // group, visible, bias), v[:, i // group]) for i in range(q.shape[1])]
    )


def diff_lambda_v2(x: Exact, weight: Exact) -> Exact:
    """λ_bit = 1 / (1 + exp(−Σ_n x_btn w_in))."""
    return filled(
        (x.shape[0], weight.shape[0], x.shape[1]),
        lambda b, i, t: _sigmoid(DIGITS.fsum(x[b, t, n] * weight[i, n] for n in range(x.shape[2]))),
    )


def rope(x: Exact, positions: np.ndarray, frequencies: Sequence[float], scale: float, pairs: Sequence[Any]) -> Exact:
    """Turn the pair (a, b) of dimensions number i by the angle p θ_i, times the scale; other dimensions stay."""
    result = x.copy()
    for b, h, t in np.ndindex(*x.shape[:3]):
        for (one, two), frequency in zip(pairs, frequencies, strict=True):
            angle = DIGITS.mpf(int(positions[b if len(positions) > 1 else 0, t])) * DIGITS.mpf(frequency)
            cos, sin = DIGITS.cos(angle) * DIGITS.mpf(scale), DIGITS.sin(angle) * DIGITS.mpf(scale)
            result[b, h, t, one] = x[b, h, t, one] * cos - x[b, h, t, two] * sin
            result[b, h, t, two] = x[b, h, t, two] * cos + x[b, h, t, one] * sin
    return result


def cross_entropy(logits: Exact, targets: Sequence[int], ignore_index: int) -> Any:
    """The mean over the targets that count of log Σ_v exp z_v − z_target, for a matrix of logits."""
    losses = [
        DIGITS.log(DIGITS.fsum(DIGITS.exp(z) for z in row)) - row[target]
        for row, target in zip(logits, targets, strict=True)
        if target != ignore_index
    ]
    return DIGITS.fsum(losses) / len(losses)


def diff_lambda(q1: Exact, k1: Exact, q2: Exact, k2: Exact, lambda_init: Any) -> Any:
    """λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init."""
    dots = [DIGITS.fsum(a * b for a, b in zip(q, k, strict=True)) for q, k in ((q1, k1), (q2, k2))]
    return DIGITS.exp(dots[0]) - DIGITS.exp(dots[1]) + DIGITS.mpf(lambda_init)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + DIGITS.exp(-x))


def _gelu(x: Any) -> Any:
    return x * DIGITS.erfc(-x / DIGITS.sqrt(2)) / 2


def _gelu_tanh(x: Any) -> Any:
    return x / 2 * (1 + DIGITS.tanh(DIGITS.sqrt(2 / DIGITS.pi) * (x + DIGITS.mpf("0.044715") * x**3)))


def _softplus(x: Any) -> Any:
    return DIGITS.log1p(DIGITS.exp(x))


def _laplace(x: Any) -> Any:
    deviation = DIGITS.mpf("0.282095") * DIGITS.sqrt(2)
    return DIGITS.erfc(-(x - DIGITS.mpf("0.707107")) / deviation) / 2


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": _gelu, "gelu_10": lambda x: max(min(_gelu(x), 10), -10), "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh, "gelu_new": _gelu_tanh, "gelu_python": _gelu, "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh, "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6, "laplace": _laplace,
    "leaky_relu": lambda x: x if x > 0 else x * DIGITS.mpf("0.01"), "linear": lambda x: x,
    "mish": lambda x: x * DIGITS.tanh(_softplus(x)), "prelu": lambda x: x if x > 0 else x / 4,
    "quick_gelu": lambda x: x * _sigmoid(DIGITS.mpf("1.702") * x),
    "relu": lambda x: max(x, 0), "relu2": lambda x: max(x, 0) ** 2, "relu6": lambda x: min(max(x, 0), 6),
    "sigmoid": _sigmoid, "silu": lambda x: x * _sigmoid(x), "sqrtsoftplus": lambda x: DIGITS.sqrt(_softplus(x)),
    "swish": lambda x: x * _sigmoid(x), "tanh": DIGITS.tanh,
}  # fmt: skip
"""The names of `hidden_act` in transformers, with their meaning there; prelu with a weight of 1/4."""
