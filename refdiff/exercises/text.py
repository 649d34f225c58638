"""Exercises on sampling, the loss, gradients and shares of attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff import layers, viz
from refdiff.exercises.exercise import Exercise, Floats, sampler
from refdiff.generation import sampling


def _pick_targets(x: Floats, targets: Floats) -> Any:
    return np.take_along_axis(x, targets[..., None], axis=-1)[..., 0]


def _sum_up_to(z: Floats) -> Any:
    """Return the probability of each token and all that are likelier."""
    p = layers.softmax(z)
    return np.where(p[:, None] >= p[..., None], p[:, None], 0.0).sum(-1)


def _rms(x: Floats, eps: float) -> Any:
    return np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def _softmax_vjp(g: Floats, a: Floats) -> Any:
    return layers.softmax_vjp(g, np.log(a))[0]


def _eq_1_vjp(g: Floats, a1: Floats, a2: Floats, v: Floats, lambda_: float) -> Any:
    grad_map = g @ v.swapaxes(-1, -2)
    return grad_map, -lambda_ * grad_map, (a1 - lambda_ * a2).swapaxes(-1, -2) @ g, -(grad_map * a2).sum()


def _share(weights: Floats, keys: Floats) -> float:
    return viz.attention_to(weights[None], {"keys": list(keys)})["keys"]


_P = np.array([0.0, 0.25, 0.5, 0.0, 0.25])

EXERCISES = (
    Exercise(
        "temperature", "temperature(z (B, V), tau) -> the probabilities (B, V)",
        lambda z, tau: layers.softmax(sampling.temperature(z, tau)),
        sampler(("at τ = 0.5", lambda n: (n(2, 7), 0.5)), ("at τ = 2", lambda n: (n(2, 7), 2.0))),
        {
            "scores are multiplied by τ: divide": lambda z, tau: layers.softmax(z * tau),
            "probabilities are divided by τ: divide the scores, before the softmax":
                lambda z, tau: layers.softmax(z) / tau,
        },
    ),
    Exercise(
        "top_k", "top_k(z (B, V), k) -> z (B, V), −∞ where a token is dropped", sampling.top_k,
        sampler(("for k = 3", lambda n: (n(2, 7), 3)), ("for k = 1", lambda n: (n(2, 7), 1))),
        {
            "dropped scores are set to 0, which softmax gives a probability: use −∞":
                lambda z, k: np.where(np.isfinite(sampling.top_k(z, k)), z, 0.0),
            "the k-th score is dropped: keep z ≥ it, not z > it":
                lambda z, k: np.where(z > np.sort(z)[:, -k, None], z, -np.inf),
            "np.argsort gives the tokens in the order of their scores, not the rank of each token":
                lambda z, k: np.where(np.argsort(-z, axis=-1) < k, z, -np.inf),
        },
    ),
    Exercise(
        "top_p", "top_p(z (B, V), p) -> z (B, V), −∞ where a token is dropped", sampling.top_p,
        sampler(("for p = 0.8", lambda n: (n(3, 7), 0.8)), ("for p = 0.01", lambda n: (n(3, 7), 0.01))),
        {"the token with which the sum reaches p is dropped: keep it":
            lambda z, p: np.where(_sum_up_to(z) <= p, z, -np.inf)},
    ),
    Exercise(
        "draw", "draw(p (V,), u in [0, 1)) -> a token", sampling.draw,
        sampler(*((f"for u = {u}", lambda n, u=u: (_P, u)) for u in (0.0, 0.2, 0.25, 0.6, 0.99))),
        {"at u = 0 it draws a token of probability 0: skip tokens while the sum of p is ≤ u":
            lambda p, u: int(np.searchsorted(np.cumsum(p), u, side="left"))},
    ),
    Exercise(
        "cross_entropy", "cross_entropy(z (B, T, V), targets (B, T)) -> a number: mean −log p of the targets",
        layers.cross_entropy,
        sampler(
            ("on ordinary scores", lambda n: (n(2, 3, 7), np.array([[0, 6, 2], [3, 3, 5]]))),
            ("on scores near 1000", lambda n: (1000 + n(2, 3, 7), np.array([[0, 6, 2], [3, 3, 5]]))),
            ("on scores that are 1000 apart", lambda n: (n(2, 3, 7, scale=1e3), np.array([[0, 6, 2], [3, 3, 5]]))),
        ),
        {
            "the sign is wrong: the loss is −log p": lambda z, targets: -layers.cross_entropy(z, targets),
            "the sum over tokens is taken, not the mean":
                lambda z, targets: targets.size * layers.cross_entropy(z, targets),
            "exp overflows in the softmax: subtract the row's largest score first":
                lambda z, targets: -np.log(_pick_targets(np.exp(z) / np.exp(z).sum(-1, keepdims=True), targets)).mean(),
            "exp overflows in the log of its sum: subtract the row's largest score first":
                lambda z, targets: (np.log(np.exp(z).sum(-1)) - _pick_targets(z, targets)).mean(),
            "the softmax rounds small probabilities to 0, whose log is −∞: log p is z − log Σ exp z, without a softmax":
                lambda z, targets: -np.log(_pick_targets(layers.softmax(z), targets)).mean(),
        },
    ),
    Exercise(
        "softmax_vjp", "softmax_vjp(g (…, S), a = softmax(z) (…, S)) -> ∂L/∂z (…, S)", _softmax_vjp,
        sampler(("on ordinary numbers", lambda n: (n(3, 5, scale=0.5), layers.softmax(n(3, 5))))),
        {
            "only the diagonal is used: every probability depends on every score": lambda g, a: g * a * (1 - a),
            "the sum is left out: a row of ∂L/∂z sums to 0": lambda g, a: g * a,
        },
    ),
    Exercise(
        "eq1_vjp", "eq1_vjp(g (T, e), a1, a2 (T, S), v (S, e), lambda_) -> ∂L/∂A₁, ∂L/∂A₂, ∂L/∂V, ∂L/∂λ", _eq_1_vjp,
        sampler(("on ordinary numbers", lambda n: (n(3, 4), *layers.softmax(n(2, 3, 5)), n(5, 4), 0.75))),
        {
            "∂L/∂A₂ lacks the minus sign": lambda g, a1, a2, v, lambda_:
                [x if i != 1 else -x for i, x in enumerate(_eq_1_vjp(g, a1, a2, v, lambda_))],
            "∂L/∂A₂ lacks λ": lambda g, a1, a2, v, lambda_:
                [x if i != 1 else x / lambda_ for i, x in enumerate(_eq_1_vjp(g, a1, a2, v, lambda_))],
            "∂L/∂λ lacks the minus sign": lambda g, a1, a2, v, lambda_:
                [x if i != 3 else -x for i, x in enumerate(_eq_1_vjp(g, a1, a2, v, lambda_))],
            "∂L/∂V uses A₁ alone, not A₁ − λ A₂": lambda g, a1, a2, v, lambda_:
                [x if i != 2 else a1.T @ g for i, x in enumerate(_eq_1_vjp(g, a1, a2, v, lambda_))],
        },
    ),
    Exercise(
        "eq2_vjp", "eq2_vjp(g, lambda_q1, lambda_k1, lambda_q2, lambda_k2 (d,)) -> the four gradients (d,)",
        lambda g, q1, k1, q2, k2: layers.diff_lambda_vjp(np.asarray(g), q1, k1, q2, k2, 0.2),
        sampler(("on ordinary numbers", lambda n: (1.5, *(0.5 * n(4, 7))))),
        {
            "exp is left out": lambda g, q1, k1, q2, k2: (g * k1, g * q1, -g * k2, -g * q2),
            "the gradients of λ_q2 and λ_k2 lack the minus sign": lambda g, q1, k1, q2, k2: (
                g * np.exp(q1 @ k1) * k1, g * np.exp(q1 @ k1) * q1, g * np.exp(q2 @ k2) * k2, g * np.exp(q2 @ k2) * q2
            ),
            "each vector is in its own gradient: ∂(λ_q1 · λ_k1)/∂λ_q1 is λ_k1": lambda g, q1, k1, q2, k2: (
                g * np.exp(q1 @ k1) * q1, g * np.exp(q1 @ k1) * k1,
                -g * np.exp(q2 @ k2) * q2, -g * np.exp(q2 @ k2) * k2,
            ),
        },
    ),
    Exercise(
        "rms_norm_vjp", "rms_norm_vjp(g (T, D), x (T, D), eps) -> ∂L/∂x (T, D), no weight",
        lambda g, x, eps: layers.rms_norm_vjp(g, x, None, eps)[0],
        sampler(("on ordinary numbers", lambda n: (n(5, 7), n(5, 7, scale=3.0), 1e-5))),
        {
            "the root mean square is treated as a constant: it depends on x too": lambda g, x, eps: g / _rms(x, eps),
            "the second term is x mean(g x): it must be x mean(g x) / rms(x)²":
                lambda g, x, eps: (g - x * (g * x).mean(-1, keepdims=True)) / _rms(x, eps),
        },
    ),
    Exercise(
        "attention_share", "attention_share(weights (S,), keys) -> Σ over keys of |weight| / Σ |weight|", _share,
        sampler(
            ("on a row of A₁", lambda n: (layers.softmax(n(5)), np.array([1, 2]))),
            ("on a row of A₁ − λ A₂", lambda n: (layers.softmax(n(5)) - 0.75 * layers.softmax(n(5)), np.array([0, 1]))),
        ),
        {
            "the signs are kept: sum the absolute values": lambda w, keys: w[keys].sum() / w.sum(),
            "the sum is not divided by that of the row": lambda w, keys: np.abs(w[keys]).sum(),
            "absolute values are taken after the sum: signs cancel":
                lambda w, keys: abs(w[keys].sum()) / np.abs(w).sum(),
        },
    ),
)  # fmt: skip
