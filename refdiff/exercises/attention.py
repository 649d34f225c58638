"""Exercises on attention: softmax, equations 1 to 3, and how each variant pairs heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refdiff import layers, oracle
from refdiff.exercises.exercise import Exercise, ExerciseCase, Floats, Normal, causal_mask, sampler

EPS, INIT = 1e-5, 0.35
TOP_LEFT = "the queries are treated as the first tokens, but they are the last"
TILED = "key heads are repeated as 0, 1, 0, 1: the order is 0, 0, 1, 1"


def _heads_spec(norm: bool, pairing: str, queries: int, keys: int) -> oracle.Spec:
    """Return the oracle's spec of a variant's heads, with or without the norm and scale after the subtraction."""
    after: dict[str, Any] = {} if norm else {"norm": "none", "out_scale": "none"}
    return oracle.Spec(
        query_heads=queries, key_heads=keys, head_dim=5, layer=1, rope="none", lambda_form="given", values="wide",
        pairing=pairing, lambda_base="constant", lambda_init=INIT, **after,
    )  # fmt: skip


def _inputs(n: Normal, queries: int, keys: int, value_scale: float = 1.0) -> dict[str, Any]:
    return {
        "q": n(2, queries, 7, 5), "k": n(2, keys, 7, 5), "v": n(2, keys // 2, 7, 10, scale=value_scale),
        "lambda_full": np.asarray(0.75),
    }  # fmt: skip


def _to_float32(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(x, dtype=np.float32) for name, x in inputs.items()}


def _eq_1_cases(n: Normal) -> list[ExerciseCase]:
    given = _inputs(n, 4, 4)
    q, k, v = given["q"], given["k"], given["v"]
    args = (q[:, :2], k[:, :2], q[:, 2:], k[:, 2:], v, 0.75)
    few = (q[:, :2, -3:], k[:, :2], q[:, 2:, -3:], k[:, 2:], v, 0.75)
    spec = _heads_spec(norm=False, pairing="halves", queries=4, keys=4)
    return [
        ExerciseCase(args, "on ordinary numbers", spec, _to_float32(given)),
        ExerciseCase(few, "for 3 queries, the last of 7 tokens"),
    ]


def _heads_cases(pairing: str) -> Callable[[Normal], list[ExerciseCase]]:
    def cases(n: Normal) -> list[ExerciseCase]:
        made = []
        for what, queries, keys, value_scale in (
            ("on ordinary numbers", 4, 4, 1.0),
            ("with two query heads per key head", 8, 4, 1.0),  # of two pairs: repeated and tiled keys differ
            ("on tiny values", 4, 4, 2.0**-9),
        ):
            given = _inputs(n, queries, keys, value_scale)
            args = (given["q"], given["k"], given["v"], 0.75, INIT, EPS)
            spec = _heads_spec(norm=True, pairing=pairing, queries=queries, keys=keys)
            made.append(ExerciseCase(args, what, spec, _to_float32(given)))
        return made

    return cases


def _diff_attention(q1: Floats, k1: Floats, q2: Floats, k2: Floats, v: Floats, lambda_: float) -> Any:
    return layers.diff_attention(q1, k1, q2, k2, v, np.asarray(lambda_))


def _eq_3(q: Floats, k: Floats, v: Floats, lambda_: float, init: float, eps: float) -> Any:
    return layers.diff_heads_hf(q, k, v, np.asarray(lambda_), init, eps)


def _eq_3_paper(q: Floats, k: Floats, v: Floats, lambda_: float, init: float, eps: float) -> Any:
    return layers.diff_heads_paper(q, k, v, np.asarray(lambda_), np.ones(v.shape[-1]), init, eps)


def _masked(q: Floats, k: Floats, visible: Any, hidden: float) -> Any:
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    return layers.softmax(np.where(visible, scores, hidden))


def _tiled(x: Floats, heads: int) -> Floats:
    return np.tile(x, (1, heads // x.shape[1], 1, 1))


def _v2_by_halves(q: Floats, k: Floats, v: Floats, lambda_: Floats) -> Any:
    B, H, T, d = q.shape
    first, second = np.split(layers.plain_heads(q, k, v).reshape(B, T, H, d), 2, axis=2)
    return (first - lambda_.swapaxes(1, 2) * second).reshape(B, T, -1)


def _evens_then_odds(x: Floats) -> Floats:
    return np.concatenate([x[:, 0::2], x[:, 1::2]], axis=1)


EXERCISES = (
    Exercise(
        "softmax", "softmax(scores (…, S)) -> (…, S)", layers.softmax,
        sampler(
            ("on ordinary scores", lambda n: (n(3, 5),)),
            ("on scores near 1000", lambda n: (1000 + n(3, 5),)),
            ("on four axes", lambda n: (n(2, 3, 4, 5),)),
        ),
        {
            "the row's largest score is not subtracted, and exp overflows":
                lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True),
            "the exponentials are not divided by their sum": lambda z: np.exp(z - z.max(-1, keepdims=True)),
            "exp alone is no softmax: subtract the row's largest score before it, divide by the row's sum after it":
                lambda z: np.exp(z),
            "the sum runs over all numbers: each row must sum to 1":
                lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum(),
            "the sum runs over the first axis, not the last":
                lambda z: np.exp(z - z.max(0)) / np.exp(z - z.max(0)).sum(0),
        },
    ),
    Exercise(
        "attention_weights", "attention_weights(q (B, H, T, d), k (B, H, S, d)) -> (B, H, T, S), causal",
        layers.attention_weights,
        sampler(
            ("on ordinary numbers", lambda n: (n(2, 3, 5, 7), n(2, 3, 5, 7))),
            ("for 2 queries, the last of 5 tokens", lambda n: (n(2, 3, 2, 7), n(2, 3, 5, 7))),
        ),
        {
            "scores are not divided by √d": lambda q, k: layers.attention_weights(q * math.sqrt(q.shape[-1]), k),
            "scores are divided by d, not √d": lambda q, k: layers.attention_weights(q / math.sqrt(q.shape[-1]), k),
            TOP_LEFT: lambda q, k: _masked(q, k, np.tri(q.shape[-2], k.shape[-2], dtype=bool), -np.inf),
            "masked scores are set to 0, to which softmax gives a weight: use −∞":
                lambda q, k: _masked(q, k, causal_mask(q.shape[-2], k.shape[-2]), 0.0),
            "later tokens are not masked": lambda q, k: layers.attention_weights(q, k, causal=False),
            "the mask is applied after the softmax: rows no longer sum to 1":
                lambda q, k: layers.attention_weights(q, k, causal=False) * causal_mask(q.shape[-2], k.shape[-2]),
        },
    ),
    Exercise(
        "eq1", "diff_attention(q1, k1, q2, k2 (B, h, T, d), v (B, h, S, 2d), lambda_) -> (B, h, T, 2d), causal",
        _diff_attention, _eq_1_cases,
        {
            "the scores are subtracted, then one softmax is taken: eq. 1 subtracts two softmaxes":
                lambda q1, k1, q2, k2, v, lambda_: layers.softmax(
                    (q1 @ k1.swapaxes(2, 3) - lambda_ * q2 @ k2.swapaxes(2, 3)) / math.sqrt(q1.shape[-1]),
                    causal_mask(q1.shape[2], k1.shape[2]),
                ) @ v,
            "λ multiplies the first map: eq. 1 is A₁ − λ A₂":
                lambda q1, k1, q2, k2, v, lambda_: -_diff_attention(q2, k2, q1, k1, v, lambda_),
            "λ is left out: that is A₁ − A₂":
                lambda q1, k1, q2, k2, v, lambda_: _diff_attention(q1, k1, q2, k2, v, 1.0),
            TOP_LEFT: lambda q1, k1, q2, k2, v, lambda_: (
                _masked(q1, k1, np.tri(q1.shape[2], k1.shape[2], dtype=bool), -np.inf)
                - lambda_ * _masked(q2, k2, np.tri(q2.shape[2], k2.shape[2], dtype=bool), -np.inf)
            ) @ v,
            "the rows of A₁ − λ A₂ are divided by their sum: in eq. 1 they sum to 1 − λ":
                lambda q1, k1, q2, k2, v, lambda_: _diff_attention(q1, k1, q2, k2, v, lambda_) / (1 - lambda_),
        },
    ),
    Exercise(
        "lambda_init", "lambda_init(layer counted from 0) -> a number", layers.lambda_init,
        sampler(("for layer 0", lambda n: (0,)), ("for layer 5", lambda n: (5,))),
        {
            "the layer is counted from 1: here it is counted from 0": lambda layer: layers.lambda_init(layer + 1),
            "the paper's l − 1 is used: its l counts from 1, but here the layer is counted from 0":
                lambda layer: 0.8 - 0.6 * np.exp(-0.3 * (layer - 1)),
            "λ_init of layer 0 is used for all": lambda layer: 0.8 - 0.6,
        },
    ),
    Exercise(
        "eq2", "diff_lambda(lambda_q1, lambda_k1, lambda_q2, lambda_k2 (d,), lambda_init) -> a number",
        layers.diff_lambda,
        sampler(
            ("on vectors as small as at initialization", lambda n: (*(0.1 * n(4, 8)), 0.2)),
            ("on larger vectors", lambda n: (*(0.5 * n(4, 9)), 0.6)),
        ),
        {
            "λ_init is left out": lambda q1, k1, q2, k2, init: layers.diff_lambda(q1, k1, q2, k2, 0.0),
            "the two exponentials are added: eq. 2 subtracts the second":
                lambda q1, k1, q2, k2, init: np.exp(q1 @ k1) + np.exp(q2 @ k2) + init,
            "the two exponentials are swapped": lambda q1, k1, q2, k2, init: layers.diff_lambda(q2, k2, q1, k1, init),
            "exp is applied to each product, not to their sum":
                lambda q1, k1, q2, k2, init: np.exp(q1 * k1).sum() - np.exp(q2 * k2).sum() + init,
            "exp is applied to the difference: eq. 2 subtracts two exponentials":
                lambda q1, k1, q2, k2, init: np.exp(q1 @ k1 - q2 @ k2) + init,
            "exp is left out": lambda q1, k1, q2, k2, init: q1 @ k1 - q2 @ k2 + init,
        },
    ),
    Exercise(
        "eq3", "heads_hf(q (B, H, T, d), k (B, K, S, d), v (B, K/2, S, 2d), lambda_, lambda_init, eps) -> (B, T, H d)",
        _eq_3, _heads_cases("halves"),
    ),
    Exercise(
        "eq3_paper",
        "heads_paper(q (B, H, T, d), k (B, K, S, d), v (B, K/2, S, 2d), lambda_, lambda_init, eps) -> (B, T, H d)",
        _eq_3_paper, _heads_cases("interleaved"),
    ),
    Exercise(
        "paper_to_hf", "paper_to_hf(x (B, H, T, d) in the paper's order) -> (B, H, T, d)", _evens_then_odds,
        sampler(("on eight heads", lambda n: (n(2, 8, 3, 5),)), ("on six heads", lambda n: (n(2, 6, 3, 5),))),
        {
            "that is the inverse, from Hugging Face's order to the paper's":
                lambda x: np.stack(np.split(x, 2, axis=1), axis=2).reshape(x.shape),
            "odd heads come first": lambda x: np.concatenate([x[:, 1::2], x[:, 0::2]], axis=1),
        },
    ),
    Exercise(
        "value_pairs", "value_pairs(v (B, K, S, d)) -> (B, K/2, S, 2d), Hugging Face's pairs", layers.value_pairs_hf,
        sampler(("on four heads", lambda n: (n(2, 4, 3, 5),)), ("on six heads", lambda n: (n(2, 6, 3, 5),))),
        {"neighboring heads are paired: Hugging Face pairs v_j and v_(j + K/2)":
            lambda v: np.concatenate([v[:, 0::2], v[:, 1::2]], axis=-1)},
    ),
    Exercise(
        "plain_heads", "plain_heads(q (B, H, T, d), k, v (B, K, S, d)) -> (B, T, H d)",
        layers.plain_heads,
        sampler(
            ("with as many key heads as query heads", lambda n: (n(2, 4, 5, 3), n(2, 4, 7, 3), n(2, 4, 7, 3))),
            ("with two query heads per key head", lambda n: (n(2, 4, 5, 3), n(2, 2, 7, 3), n(2, 2, 7, 3))),
        ),
        {TILED: lambda q, k, v: layers.plain_heads(q, _tiled(k, q.shape[1]), _tiled(v, q.shape[1]))},
    ),
    Exercise(
        "lambda_v2", "lambda_v2(x (B, T, D), w (h, D)) -> (B, h, T, 1)",
        layers.diff_lambda_v2, sampler(("on ordinary numbers", lambda n: (n(2, 5, 7), n(3, 7)))),
        {"the sigmoid is left out": lambda x, w: (x @ w.T).swapaxes(1, 2)[..., None]},
    ),
    Exercise(
        "v2", "heads_v2(q (B, 2h, T, d), k, v (B, K, S, d), lambda_ (B, h, T, 1)) -> (B, T, h d)",
        layers.diff_heads_v2,
        sampler(("with two pairs per key head", lambda n: (n(2, 8, 5, 7), n(2, 2, 5, 7), n(2, 2, 5, 7),
                                                           1 / (1 + np.exp(n(2, 4, 5, 1)))))),
        {
            "heads i and i + h are paired: V2 pairs neighbors": lambda q, k, v, lambda_:
                layers.diff_heads_v2(np.stack(np.split(q, 2, axis=1), axis=2).reshape(q.shape), k, v, lambda_),
            "heads i and i + h are paired, each with its own key head: V2 pairs neighbors, which share one":
                _v2_by_halves,
            TILED: lambda q, k, v, lambda_:
                layers.diff_heads_v2(q, _tiled(k, q.shape[1] // 2), _tiled(v, q.shape[1] // 2), lambda_),
        },
    ),
)  # fmt: skip
