"""Scores that depend on the tokens so far: (B, V) scores and (B, T) ids in, new scores out; nothing is written to.

Meaning and order are those of transformers' `generate`; a forbidden token gets −inf. `pipeline.py` puts them in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
Ids = NDArray[np.int64]


def sequence_bias(scores: Scores, ids: Ids, biases: Mapping[tuple[int, ...], float]) -> Scores:
    """Add a bias to the token that would complete a sequence of tokens.

    z'[v] = z[v] + Σ bias(s) over the sequences s = (…prefix, v) whose prefix ends the row.
    Shapes: scores (B, V), ids (B, T) → (B, V)
    """
    added: dict[int, Scores] = {}
    for sequence, value in biases.items():
        *prefix, last = sequence
        if len(prefix) > ids.shape[1]:
            continue
        rows = (ids[:, ids.shape[1] - len(prefix) :] == np.array(prefix, dtype=np.int64)).all(axis=1)
        added.setdefault(last, np.zeros(len(scores), scores.dtype))[rows] += value
    result = scores.copy()
    for last, bias in added.items():
        result[:, last] += bias
    return result


def bad_words(scores: Scores, ids: Ids, words: Sequence[Sequence[int]]) -> Scores:
    """Forbid the token that would complete one of the words; a word is a sequence of token ids.

    Shapes: scores (B, V), ids (B, T) → (B, V)
    """
    return sequence_bias(scores, ids, {tuple(word): -np.inf for word in words})


def repetition_penalty(scores: Scores, ids: Ids, penalty: float, *, skip: NDArray[np.int64] | None = None) -> Scores:
    """Make every token that the row already holds, prompt included, less likely.

    z'[v] = z[v] / θ where z[v] ≥ 0 and z[v] · θ where z[v] < 0, for v among the row's ids (Keskar et al. 2019, CTRL,
    section 4.1, with the sign handled as transformers handles it).
    Shapes: scores (B, V), ids (B, T), skip (B,) = how many ids at the start of each row are padding → (B, V)
    """
    B, V = scores.shape
    seen = np.zeros((B, V), dtype=bool)
    counts = np.ones(ids.shape, dtype=bool) if skip is None else np.arange(ids.shape[1]) >= skip[:, None]
    rows, columns = np.nonzero(counts)
    seen[rows, ids[rows, columns]] = True
    return np.where(seen, np.where(scores < 0, scores * penalty, scores / penalty), scores)


def no_repeat_ngram(scores: Scores, ids: Ids, size: int) -> Scores:
    """Forbid the token that would repeat an n-gram of the row (Paulus et al. 2017, section 2.5, for any n).

    Shapes: scores (B, V), ids (B, T) → (B, V)
    """
    T = ids.shape[1]
    if size > T:
        return scores
    windows = np.lib.stride_tricks.sliding_window_view(ids, size, axis=1)
    prefix = ids[:, T - size + 1 :]
    rows, starts = np.nonzero((windows[:, :, :-1] == prefix[:, None, :]).all(axis=2))
    result = scores.copy()
    result[rows, windows[rows, starts, -1]] = -np.inf
    return result


def suppress_tokens(scores: Scores, tokens: Sequence[int]) -> Scores:
    """Forbid the tokens; ids past the vocabulary name nothing and are ignored.

    Shapes: scores (B, V) → (B, V)
    """
    result = scores.copy()
    result[:, [token for token in tokens if 0 <= token < scores.shape[1]]] = -np.inf
    return result


def min_new_tokens(scores: Scores, generated: int, minimum: int, eos: Sequence[int]) -> Scores:
    """Forbid the end-of-sequence tokens until `minimum` tokens have been generated.

    Shapes: scores (B, V) → (B, V)
    """
    return suppress_tokens(scores, eos) if generated < minimum else scores
