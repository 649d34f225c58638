"""From scores to a token: the warpers that reshape a distribution, and the draw from it.

Every warper takes (B, V) scores and returns new ones in which a removed token is `fill`; at least `keep` survive.
The results are those of transformers' warpers. The draw inverts the cumulative distribution with one uniform number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from refdiff.layers.softmax import softmax as softmax

Scores = NDArray[np.floating]


def log_softmax(scores: Scores) -> Scores:
    """Compute log p = z − max z − log Σ exp(z − max z), along the last axis.

    Shapes:
        scores (…, V) → (…, V). −inf stays −inf.
    """
    shifted = scores - scores.max(axis=-1, keepdims=True)
    result: Scores = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _top_mask(scores: Scores, keep: int) -> NDArray[np.bool_]:
    """Return which tokens have at least the `keep`-th best score of their sequence."""
    V = scores.shape[1]
    k = min(keep, V)
    return scores >= np.partition(scores, V - k, axis=1)[:, V - k, None]


def temperature(scores: Scores, value: float) -> Scores:
    """Compute z' = z / τ (Ackley, Hinton & Sejnowski 1985).

    Shapes:
        scores (B, V) → (B, V)
    """
    return scores / value


def top_h(scores: Scores, share: float, *, fill: float = -np.inf) -> Scores:
    """Keep the most likely tokens while their terms −p log p sum to at most a share of the entropy (Potraghloo 2025).

    p is the distribution over the 100 most likely tokens; the first of them is always kept.

    Shapes:
        scores (B, V) → (B, V)
    """
    best = top_indices(scores, min(100, scores.shape[1]))
    logs = log_softmax(np.take_along_axis(scores, best, axis=1))
    terms = -np.exp(logs) * np.where(np.isneginf(logs), 0.0, logs)
    within = terms.cumsum(axis=1) <= share * terms.sum(axis=1, keepdims=True)
    within[:, 0] = True
    kept = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(kept, best, within, axis=1)
    return np.where(kept, scores, fill)


def top_k(scores: Scores, k: int, *, keep: int = 1, fill: float = -np.inf) -> Scores:
    """Keep the k most likely tokens, and every token as likely as the last of them (Fan et al. 2018).

    Shapes:
        scores (B, V) → (B, V)
    """
    return np.where(_top_mask(scores, max(k, keep)), scores, fill)


def top_p(scores: Scores, p: float, *, keep: int = 1, fill: float = -np.inf) -> Scores:
    """Keep the smallest set of most likely tokens whose probabilities sum to p or more (Holtzman et al. 2020, eq. 2).

    Equivalently, drop the least likely tokens while their sum stays ≤ 1 − p.

    Shapes:
        scores (B, V) → (B, V)
    """
    kept = np.zeros(scores.shape, dtype=bool)
    for row, values in enumerate(scores):
        possible = np.flatnonzero(values > -np.inf)
        from_the_end = np.cumsum(softmax(np.sort(values[possible])))
        count = max(int((from_the_end > 1.0 - p).sum()), min(keep, possible.size))
        kept[row, possible[top_indices(values[None, possible], count)[0]]] = True
    return np.where(kept, scores, fill)


def min_p(scores: Scores, p: float, *, keep: int = 1, fill: float = -np.inf) -> Scores:
    """Keep the tokens with probability ≥ p · max probability (Nguyen et al. 2024).

    Shapes:
        scores (B, V) → (B, V)
    """
    probabilities = softmax(scores)
    kept = probabilities >= p * probabilities.max(axis=1, keepdims=True)
    np.put_along_axis(kept, top_indices(scores, min(keep, scores.shape[1])), True, axis=1)
    return np.where(kept, scores, fill)


def typical_p(scores: Scores, mass: float, *, keep: int = 1, fill: float = -np.inf) -> Scores:
    """Keep the tokens whose surprise is nearest to the entropy until they hold `mass` (Meister et al. 2022, eq. 10).

    Order by |−log p(v) − H|, H = −Σ p log p.

    Shapes:
        scores (B, V) → (B, V)
    """
    logs = log_softmax(scores)
    probabilities = np.exp(logs)
    finite_logs = np.where(probabilities > 0, logs, 0.0)
    entropy = -(finite_logs * probabilities).sum(axis=1, keepdims=True)
    distance = np.abs(-logs - entropy)
    order = np.argsort(distance, axis=1, kind="stable")
    sorted_distance = np.take_along_axis(distance, order, axis=1)
    cumulative = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1)
    last = np.minimum((cumulative < mass).sum(axis=1, keepdims=True), scores.shape[1] - 1)
    kept_sorted = sorted_distance <= np.take_along_axis(sorted_distance, last, axis=1)
    kept_sorted[:, :keep] = True
    kept = np.empty_like(kept_sorted)
    np.put_along_axis(kept, order, kept_sorted, axis=1)
    return np.where(kept, scores, fill)


def epsilon_cutoff(scores: Scores, epsilon: float, *, keep: int = 1, fill: float = -np.inf) -> Scores:
    """Keep the tokens with probability ≥ ε (Hewitt, Manning & Liang 2022, eq. 7).

    Shapes:
        scores (B, V) → (B, V)
    """
    return np.where((softmax(scores) >= epsilon) | _top_mask(scores, keep), scores, fill)


def eta_cutoff(scores: Scores, epsilon: float, *, keep: int = 1, fill: float = -np.inf) -> Scores:
    """Keep the tokens with probability ≥ η = min(ε, √ε · exp(−H)) (Hewitt, Manning & Liang 2022, eq. 9).

    Shapes:
        scores (B, V) → (B, V)
    """
    logs = log_softmax(scores)
    probabilities = np.exp(logs)
    entropy = -(np.where(probabilities > 0, logs, 0.0) * probabilities).sum(axis=1, keepdims=True)
    eta = np.minimum(epsilon, np.sqrt(epsilon) * np.exp(-entropy))
    return np.where((probabilities >= eta) | _top_mask(scores, keep), scores, fill)


def top_indices(scores: Scores, k: int) -> NDArray[np.int64]:
    """Return the indices of the k best scores of each sequence, best first; of equal scores the lower index first.

    Shapes:
        scores (B, N) → (B, k)
    """
    B, N = scores.shape
    threshold = np.partition(scores, N - k, axis=1)[:, N - k]
    result = np.empty((B, k), dtype=np.int64)
    for row in range(B):
        candidates = np.flatnonzero(scores[row] >= threshold[row])
        result[row] = candidates[np.argsort(-scores[row, candidates], kind="stable")[:k]]
    return result


class Uniforms:
    """A stream of uniform numbers in [0, 1), 53 bits each, from PCG64: the same on every machine and NumPy version."""

    def __init__(self, seed: np.random.SeedSequence) -> None:
        self._bits = np.random.PCG64(seed)

    def next(self) -> float:
        """Return the next number of the stream."""
        return float(int(self._bits.random_raw()) >> 11) * 2.0**-53

    def take(self, n: int) -> Scores:
        """Return the next n numbers of the stream."""
        numbers: Scores = (self._bits.random_raw(n) >> np.uint64(11)) * 2.0**-53
        return numbers


def prompt_streams(seed: int, prompts: Iterable[NDArray[np.int64]]) -> list[Uniforms]:
    """Return one stream per prompt, keyed by the seed, the prompt's tokens, and the number of equal prompts before it.

    So a text does not depend on the rest of its batch. And n copies of a prompt give n different texts, the same as
    with `num_return_sequences=n`.
    """
    seen: dict[bytes, int] = {}
    streams = []
    for prompt in prompts:
        digest = hashlib.blake2b(prompt.astype("<i8").tobytes(), digest_size=16).digest()
        nth = seen.get(digest, 0)
        seen[digest] = nth + 1
        key = (int.from_bytes(digest, "little"), nth)
        streams.append(Uniforms(np.random.SeedSequence(seed, spawn_key=key)))
    return streams


def draw(probabilities: NDArray[np.floating], u: float) -> int:
    """Return the token at which the cumulative distribution passes u.

    P(token = v) = p[v] / Σ p for u uniform in [0, 1).

    Shapes:
        probabilities (V,), not necessarily summing to 1 → one index. A token of probability 0 is never drawn.
    """
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    token = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    if token == cumulative.size:  # u · Σp rounded up to Σp
        token = int(np.flatnonzero(probabilities)[-1])
    return token


def draw_without_replacement(log_weights: Scores, k: int, stream: Uniforms) -> NDArray[np.int64]:
    """Draw k different indices one after the other, each by the weights of those that are left.

    These are the k largest log w − log(−log u), u uniform (Kool, van Hoof & Welling 2019, the Gumbel-top-k trick).

    Shapes:
        log_weights (N,) → (k,). When fewer than k have any weight, the others follow in order.
    """
    with np.errstate(divide="ignore"):
        keys = log_weights - np.log(-np.log(stream.take(len(log_weights))))
    return top_indices(keys[None, :], k).reshape(-1)
