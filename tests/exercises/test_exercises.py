"""Exercises: the truth passes, an error of 0.1 % does not, every known mistake is caught and named."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff import exercises
from refdiff.exercises.check import EXERCISES

ALL = list(EXERCISES)
Function = Callable[..., Any]


def _scaled(result: Any, factor: float) -> Any:
    """A result whose last array, or number, is `factor` times as large."""
    if isinstance(result, tuple | list):
        return [*result[:-1], _scaled(result[-1], factor)]
    return factor * np.asarray(result)


@pytest.mark.parametrize("name", ALL)
def test_the_truth_is_correct_and_a_thousandth_more_is_not(name: str) -> None:
    truth = EXERCISES[name].truth
    feedback = exercises.check(name, truth)
    assert feedback
    assert re.fullmatch(rf"{name}: correct, on \d inputs", repr(feedback))
    factor = 2 if name in ("causal_mask", "draw") else 1.001  # the results of those are whole
    off = exercises.check(name, lambda *args: _scaled(truth(*args), factor))
    assert not off
    assert "wrong" in off.message


@pytest.mark.parametrize(("name", "mistake"), [(name, what) for name in ALL for what in EXERCISES[name].mistakes])
def test_a_known_mistake_is_caught_and_named(name: str, mistake: str) -> None:
    feedback = exercises.check(name, EXERCISES[name].mistakes[mistake])
    assert not feedback
    assert feedback.mistake == mistake
    assert feedback.message.endswith(f"the mistake: {mistake}")


def _loops(q1: Any, k1: Any, q2: Any, k2: Any, v: Any, lambda_: float) -> Any:
    """Eq. 1, query by query."""
    B, h, T, d = q1.shape
    S = k1.shape[2]
    out = np.zeros((B, h, T, v.shape[-1]))
    for b, i, t in np.ndindex(B, h, T):
        seen = S - T + t + 1
        e1, e2 = (np.exp(q[b, i, t] @ k[b, i, :seen].T / d**0.5) for q, k in ((q1, k1), (q2, k2)))
        out[b, i, t] = (e1 / e1.sum() - lambda_ * e2 / e2.sum()) @ v[b, i, :seen]
    return out


def _turned(x: Any, positions: Any, theta: Any) -> Any:
    """RoPE by complex numbers."""
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None] * theta)
    return np.concatenate([z.real, z.imag], axis=-1)


def _pairs(q: Any, k: Any, v: Any, lambda_: float, start: float, eps: float) -> Any:
    """Eq. 3 with Hugging Face's pairs, head by head."""
    h, n = q.shape[1] // 2, q.shape[1] // k.shape[1]
    heads = []
    for i in range(h):
        j, both = i // n, k.shape[1] // 2
        at = [q[:, [i]], k[:, [j]], q[:, [i + h]], k[:, [j + both]], v[:, [j]]]
        o = _loops(*at, lambda_)[:, 0]
        heads.append((1 - start) * o / np.sqrt((o * o).mean(-1, keepdims=True) + eps))
    return np.concatenate(heads, axis=-1)


def _tiled(x: Any, pairs: int) -> Any:
    return np.concatenate([x] * (pairs // x.shape[1]), axis=1)


def _heads_on_tiled_keys(q: Any, k: Any, v: Any, lambda_: float, start: float, eps: float, *, paper: bool) -> Any:
    """Eq. 3 for heads that share key heads, pair i on key pair i mod K/2: it must be i // n."""
    B, H, T, _ = q.shape
    (q1, q2), (k1, k2) = ((x[:, 0::2], x[:, 1::2]) if paper else np.split(x, 2, axis=1) for x in (q, k))
    out = _loops(q1, _tiled(k1, H // 2), q2, _tiled(k2, H // 2), _tiled(v, H // 2), lambda_)
    out = (1 - start) * out / np.sqrt((out * out).mean(-1, keepdims=True) + eps)
    return out.swapaxes(1, 2).reshape(B, T, -1)


def _v2_without_sharing(q: Any, k: Any, v: Any, lambda_: Any) -> Any:
    maps = [EXERCISES["attention_weights"].truth(part, k) for part in (q[:, 0::2], q[:, 1::2])]
    out = (maps[0] - lambda_ * maps[1]) @ v
    return out.swapaxes(1, 2).reshape(*out.shape[0:3:2], -1)


def _nucleus_below(z: Any, p: float) -> Any:
    """Top-p that keeps tokens only while their sum is below p."""
    out = np.full(z.shape, -np.inf)
    for row, scores in enumerate(z):
        total = 0.0
        for token in np.argsort(-scores):
            total += np.exp(scores[token]) / np.exp(scores).sum()
            if total < p:
                out[row, token] = scores[token]
    return out


LEARNERS: list[tuple[str, Function, str]] = [
    ("eq3", lambda *args: _heads_on_tiled_keys(*args, paper=False), "keys_tiled"),
    ("eq3_paper", lambda *args: _heads_on_tiled_keys(*args, paper=True), "keys_tiled"),
    ("attention_share", lambda w, keys: abs(sum(w[i] for i in keys)) / sum(abs(w)), "absolute values are taken after"),
    ("lambda_init", lambda layer: 0.8 - 0.6 * np.exp(-0.3 * (layer - 1)), "the paper's l − 1"),
    ("eq1", lambda *args: _loops(*args[:5], 1.0), "λ is left out"),
    ("rms_norm", lambda x, w, eps: [w * row / (row**2).mean() for row in x], ""),
    ("rms_norm", lambda x, w, eps: [w * row / (sum(row**2) / len(row) + eps) for row in x], "the root is left out"),
    ("top_p", _nucleus_below, "the token with which the sum reaches p"),
    ("softmax", lambda z: np.exp(z - z.max(-1)[..., None]), "the exponentials are not divided"),
    ("causal_mask", lambda T, S: [[s >= t for s in range(S)] for t in range(T)], "np.triu keeps the later tokens"),
]
"""Wrong code of a learner's, that shares nothing with the table of mistakes → how its name begins; "" has none."""


@pytest.mark.parametrize(("name", "function", "mistake"), LEARNERS)
def test_the_mistake_of_a_learner_is_named(name: str, function: Function, mistake: str) -> None:
    feedback = exercises.check(name, function)
    assert not feedback
    assert (feedback.mistake or "").startswith(mistake)
    assert bool(feedback.mistake) == bool(mistake)


def test_v2_without_sharing_keys_is_refused() -> None:
    feedback = exercises.check("v2", _v2_without_sharing)
    assert not feedback
    assert "\n  with q (2, 8, 5, 7), k (2, 2, 5, 7), v (2, 2, 5, 7), lambda_ (2, 4, 5, 1)" in feedback.message


INDEPENDENT: dict[str, Function] = {
    "embedding": lambda ids, table: np.array([[*table[i]] for i in ids]),
    "softmax": lambda z: np.exp(z - z.max(-1, keepdims=True)) / np.exp(z - z.max(-1, keepdims=True)).sum(-1)[..., None],
    "rms_norm": lambda x, w, eps: np.array([w * row / np.sqrt(sum(row**2) / len(row) + eps) for row in x]),
    "rope_frequencies": lambda d, base: [1 / base ** (i / d) for i in range(0, d, 2)],
    "rope": _turned,
    "eq1": _loops,
    "lambda_init": lambda layer: 0.8 - 0.6 * np.exp(-0.3 * layer),
    "eq2": lambda q1, k1, q2, k2, start: np.exp(sum(q1 * k1)) - np.exp(sum(q2 * k2)) + start,
    "eq3": _pairs,
    "cross_entropy": lambda z, t: np.mean([np.logaddexp.reduce(z[at]) - z[at][t[at]] for at in np.ndindex(t.shape)]),
    "attention_share": lambda w, keys: sum(abs(w[i]) for i in keys) / sum(abs(x) for x in w),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_code_that_shares_nothing_with_refdiff_is_correct(name: str) -> None:
    feedback = exercises.check(name, INDEPENDENT[name])
    assert feedback, feedback


def test_the_gradients_of_eq_1_are_slopes() -> None:
    rng = np.random.default_rng(3)
    (case,) = EXERCISES["eq1_vjp"].cases()
    g, *given = case.args
    gradients = EXERCISES["eq1_vjp"].truth(*case.args)

    def loss(a1: Any, a2: Any, v: Any, lambda_: Any) -> Any:
        return (g * ((a1 - lambda_ * a2) @ v)).sum()

    for i, gradient in enumerate(gradients):
        u = rng.standard_normal(np.shape(gradient))
        ends = [loss(*given[:i], given[i] + step * u, *given[i + 1 :]) for step in (1e-6, -1e-6)]
        assert np.isclose((ends[0] - ends[1]) / 2e-6, (gradient * u).sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "function", "mistake"),
    [
        ("eq3", lambda *args: EXERCISES["eq3"].truth(*args[:4], 0.0, args[5]), "no_output_scale"),
        ("eq3", EXERCISES["eq3_paper"].truth, "interleaved_pairs"),
        ("eq1", lambda q1, k1, q2, k2, v, lambda_: EXERCISES["eq1"].truth(q1, k1, q2, k2, v, -lambda_), "lambda_added"),
    ],
)
def test_the_oracle_names_what_its_catalogue_has(name: str, function: Function, mistake: str) -> None:
    feedback = exercises.check(name, function)
    assert not feedback
    assert feedback.mistake is not None
    assert feedback.mistake.startswith(f"{mistake} (")


def test_an_error_in_one_place_is_located() -> None:
    def wrong(*args: Any) -> Any:
        out = np.array(EXERCISES["eq1"].truth(*args))
        out[:, 1, 2] *= 1.001
        return out

    feedback = exercises.check("eq1", wrong)
    assert "20 of 280 numbers, all at index 1 of axis 1 and index 2 of axis 2\n" in feedback.message
    assert "the first is [0, 1, 2, 0]: " in feedback.message
    assert feedback.mistake is None


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda q: q, "raised TypeError"),
        (lambda q: q, "\n  with g (3, 4), a1 (3, 5), a2 (3, 5), v (5, 4), lambda_ = 0.75"),
        (lambda *args: None, "your function returned None: is a `return` missing?"),
        (lambda *args: "a word", "the result is str, expected numbers\n  called as eq1_vjp(g"),
        (lambda *args: args[0], "1 arrays, expected 4"),
        (lambda g, a1, a2, v, lambda_: (a1.T, a2, v, 0.0), "result 1 of 4: shape (5, 3), expected (3, 5)"),
        (lambda g, a1, a2, v, lambda_: np.multiply(a1, 2, out=a1), "writes to its arguments"),
        (lambda g, a1, a2, v, lambda_: (a1 * np.nan, a2, v, 0.0), "the first is [0, 0]: nan, expected"),
    ],
)
def test_invalid_results_are_described(function: Function, said: str) -> None:
    feedback = exercises.check("eq1_vjp", function)
    assert not feedback
    assert said in repr(feedback)


@pytest.mark.parametrize("name", ALL)
def test_a_signature_names_every_argument(name: str) -> None:
    for case in EXERCISES[name].cases():
        assert len(EXERCISES[name].arguments) == len(case.args)


def test_places_that_follow_each_other_are_a_range() -> None:
    feedback = exercises.check("eq3", lambda *args: np.where(np.arange(args[0].shape[1] * 5) < 10, 0.0, _pairs(*args)))
    assert "all at index 0 to 9 of axis 2\n" in feedback.message


def test_an_unknown_exercise_is_refused_with_a_hint() -> None:
    with pytest.raises(KeyError, match="did you mean softmax"):
        exercises.check("soft_max", np.exp)
    with pytest.raises(KeyError, match="there are embedding, swiglu"):
        exercises.signature("0")
    assert exercises.signature("eq2").startswith("diff_lambda(lambda_q1, ")
