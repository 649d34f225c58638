"""Exercises on layers that work on each token (embedding, norm, RoPE, SwiGLU), and on the causal mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff import layers
from refdiff.exercises.exercise import Exercise, Floats, causal_mask, sampler


def _swiglu(x: Floats, w_gate: Floats, w_up: Floats, w_down: Floats) -> Any:
    return layers.swiglu(x, {"weight": w_gate}, {"weight": w_up}, {"weight": w_down})


def _silu(x: Floats) -> Any:
    return x / (1 + np.exp(-x))


def _layer_norm(x: Floats, weight: Floats, eps: float) -> Any:
    return layers.rms_norm(x - x.mean(axis=-1, keepdims=True), weight, eps)


def _frequencies(d: int, base: float) -> Floats:
    return np.array(layers.rope_frequencies({"rope_type": "default", "rope_theta": base}, d, 64)[0])


def _rope(x: Floats, positions: Floats, theta: Floats, *, interleaved: bool = False) -> Any:
    cos, sin = layers.rope_cos_sin(positions[None], list(map(float, theta)), 1.0, x.dtype)
    return layers.rope(x[None], cos, sin, interleaved=interleaved)[0]


def _backward_rope(x: Floats, positions: Floats, theta: Floats) -> Any:
    return _rope(x, -positions, theta)


EXERCISES = (
    Exercise(
        "embedding", "embedding(ids (T,), table (V, D)) -> (T, D)", layers.embedding,
        sampler(("on five ids", lambda n: (np.array([3, 0, 10, 3, 7]), n(11, 4)))),
        {"the columns of the table are read, not its rows": lambda ids, table: table.T[ids % table.shape[1]]},
    ),
    Exercise(
        "swiglu", "swiglu(x (T, D), w_gate (F, D), w_up (F, D), w_down (D, F)) -> (T, D)", _swiglu,
        sampler(("on ordinary numbers", lambda n: (n(5, 3), n(7, 3), n(7, 3, scale=2.0), n(3, 7)))),
        {
            "gate and up are swapped": lambda x, gate, up, down: _swiglu(x, up, gate, down),
            "the gate is the sigmoid σ(x): SiLU is x σ(x)":
                lambda x, gate, up, down: (x @ up.T / (1 + np.exp(-(x @ gate.T)))) @ down.T,
            "the gate has no activation: it must be SiLU, x σ(x)":
                lambda x, gate, up, down: (x @ gate.T * (x @ up.T)) @ down.T,
            "up is left out": lambda x, gate, up, down: _silu(x @ gate.T) @ down.T,
            "the gate is ReLU: it must be SiLU, x σ(x)":
                lambda x, gate, up, down: (np.maximum(x @ gate.T, 0) * (x @ up.T)) @ down.T,
            "gate and up are added, not multiplied": lambda x, gate, up, down: (_silu(x @ gate.T) + x @ up.T) @ down.T,
        },
    ),
    Exercise(
        "causal_mask", "causal_mask(queries T, keys S) -> (T, S), True where a query may attend", causal_mask,
        sampler(
            ("for 5 queries and 5 keys", lambda n: (5, 5)), ("for 3 queries, the last of 7 keys", lambda n: (3, 7)),
        ),
        {
            "the queries are treated as the first tokens, but they are the last": lambda T, S: np.tri(T, S, dtype=bool),
            "a token may not attend to itself": lambda T, S: np.tri(T, S, S - T - 1, dtype=bool),
            "np.triu keeps the later tokens: np.tri and np.tril keep the earlier ones":
                lambda T, S: np.triu(np.ones((T, S), dtype=bool)),
            "True and False are swapped, and the queries are treated as the first tokens":
                lambda T, S: ~np.tri(T, S, dtype=bool),
            "True and False are swapped": lambda T, S: ~np.tri(T, S, S - T, dtype=bool),
        },
    ),
    Exercise(
        "rms_norm", "rms_norm(x (T, D), weight (D,), eps) -> (T, D)", layers.rms_norm,
        sampler(
            ("on ordinary tokens", lambda n: (n(5, 7), 1 + n(7, scale=0.5), 1e-5)),
            ("on tokens near zero", lambda n: (n(3, 7, scale=1e-3), np.ones(7), 1e-5)),
        ),
        {
            "the mean is subtracted: that is LayerNorm": _layer_norm,
            "ε is added outside the root":
                lambda x, w, eps: x / (np.sqrt((x * x).mean(-1, keepdims=True)) + eps) * w,
            "the standard deviation is taken, not the root mean square":
                lambda x, w, eps: x / np.sqrt(x.var(-1, keepdims=True) + eps) * w,
            "the root is left out: it divides by the mean square":
                lambda x, w, eps: x / ((x * x).mean(-1, keepdims=True) + eps) * w,
            "the mean runs over all numbers: each token has its own":
                lambda x, w, eps: x / np.sqrt((x * x).mean() + eps) * w,
            "ε is left out": lambda x, w, eps: layers.rms_norm(x, w, 0.0),
            "the weight is left out": lambda x, w, eps: layers.rms_norm(x, None, eps),
            "it divides by the length, not by the root mean square":
                lambda x, w, eps: x / np.sqrt((x * x).sum(-1, keepdims=True) + eps) * w,
        },
    ),
    Exercise(
        "rope_frequencies", "rope_frequencies(d, base) -> (d / 2,)", _frequencies,
        sampler(("for d = 8, base 100", lambda n: (8, 100.0)), ("for d = 64, base 10000", lambda n: (64, 10_000.0))),
        {
            "the exponent is −i/d: it must be −2i/d": lambda d, base: base ** (-np.arange(d // 2) / d),
            "the exponent is −4i/d: it must be −2i/d": lambda d, base: base ** (-2 * np.arange(0, d, 2) / d),
            "the exponent has the wrong sign": lambda d, base: base ** (np.arange(0, d, 2) / d),
        },
    ),
    Exercise(
        "rope", "rope(x (H, T, d), positions (T,), theta (d / 2,)) -> (H, T, d), halves paired", _rope,
        sampler(
            ("at positions 0 to 4", lambda n: (n(3, 5, 8), np.arange(5), _frequencies(8, 100.0))),
            ("at position 1000", lambda n: (n(2, 1, 8), np.array([1000]), _frequencies(8, 100.0))),
        ),
        {
            "neighbors are paired, (x₂ᵢ, x₂ᵢ₊₁): Hugging Face pairs x_i with x_(i + d/2)":
                lambda x, p, theta: _rope(x, p, theta, interleaved=True),
            "it rotates backwards: the sign of sin is wrong": _backward_rope,
            "positions are counted from 1": lambda x, p, theta: _rope(x, p + 1, theta),
            "positions are counted from 0, whatever `positions` says":
                lambda x, p, theta: _rope(x, np.arange(len(p)), theta),
        },
    ),
)  # fmt: skip
