"""Logits processors: from (B, V) scores and (B, T) ids to new scores; the arguments are not changed.

Meaning and order are those of transformers' `generate`; a forbidden token gets −inf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array
from refdiff.generation import sampling
from refdiff.generation.options import Options

Scores = NDArray[np.floating]
Ids = NDArray[np.int64]


def sequence_bias(scores: Scores, ids: Ids, biases: Mapping[tuple[int, ...], float]) -> Scores:
    """Add a bias to the token that would complete a sequence of tokens.

    z'[v] = z[v] + Σ bias(s) over the sequences s = (…prefix, v) whose prefix ends the ids so far.

    Shapes:
        scores (B, V), ids (B, T) → (B, V)
    """
    added: dict[int, Scores] = {}
    for sequence, value in biases.items():
        *prefix, last = sequence
        if len(prefix) > ids.shape[1]:
            continue
        matches = (ids[:, ids.shape[1] - len(prefix) :] == np.array(prefix, dtype=np.int64)).all(axis=1)
        added.setdefault(last, np.zeros(len(scores), scores.dtype))[matches] += value
    result = scores.copy()
    for last, bias in added.items():
        result[:, last] += bias
    return result


def bad_words(scores: Scores, ids: Ids, words: Sequence[Sequence[int]]) -> Scores:
    """Forbid the token that would complete one of the words; a word is a sequence of token ids.

    Shapes:
        scores (B, V), ids (B, T) → (B, V)
    """
    return sequence_bias(scores, ids, {tuple(word): -np.inf for word in words})


def repetition_penalty(scores: Scores, ids: Ids, penalty: float, *, skip: NDArray[np.int64] | None = None) -> Scores:
    """Make every token of the sequence so far, prompt included, less likely.

    z'[v] = z[v] / θ where z[v] ≥ 0 and z[v] · θ where z[v] < 0, for v among the ids so far (Keskar et al. 2019, CTRL,
    section 4.1, with the sign handled as transformers handles it).

    Shapes:
        scores (B, V), ids (B, T), skip (B,) = how many ids at the start of each sequence are padding → (B, V)
    """
    B, V = scores.shape
    seen = np.zeros((B, V), dtype=bool)
    counts = np.ones(ids.shape, dtype=bool) if skip is None else np.arange(ids.shape[1]) >= skip[:, None]
    rows, columns = np.nonzero(counts)
    seen[rows, ids[rows, columns]] = True
    return np.where(seen, np.where(scores < 0, scores * penalty, scores / penalty), scores)


def no_repeat_ngram(scores: Scores, ids: Ids, size: int) -> Scores:
    """Forbid the token that would repeat an n-gram of the sequence (Paulus et al. 2017, section 2.5, for any n).

    Shapes:
        scores (B, V), ids (B, T) → (B, V)
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

    Shapes:
        scores (B, V) → (B, V)
    """
    result = scores.copy()
    result[:, [token for token in tokens if 0 <= token < scores.shape[1]]] = -np.inf
    return result


def min_new_tokens(scores: Scores, generated: int, minimum: int, eos: Sequence[int]) -> Scores:
    """Forbid the end-of-sequence tokens until `minimum` tokens have been generated.

    Shapes:
        scores (B, V) → (B, V)
    """
    return suppress_tokens(scores, eos) if generated < minimum else scores


class ScoreError(ValueError):
    """No token can be chosen by the scores."""


class LogitsProcessors:
    """The processors and, for sampling, the warpers of a call, in the order in which transformers applies them.

    A call converts the (B, V) logits after ids (B, T) to the scores by which the next token is chosen. Without an
    active option it returns the logits unchanged; otherwise the scores are float64.

    Raises:
        ValueError: NaN among the scores of an unfinished sequence, nothing but −inf, or while sampling inf; the message
            has the sequence and the step.
    """

    def __init__(self, options: Options, prompt_length: int, padding: NDArray[np.int64] | None = None) -> None:
        self.prompt_length = prompt_length
        self._sampling = options.do_sample
        self._processors = _select_processors(options, prompt_length, padding)
        self._warpers = _select_warpers(options) if options.do_sample else []

    def __call__(self, logits: Scores, ids: Ids, active: NDArray[np.bool_] | None = None) -> Scores:
        self.check(logits, ids, active)
        if not self._processors and not self._warpers:
            return logits
        scores: Scores = logits.astype(np.float64)
        for process in self._processors:
            scores = process(scores, ids)
        self.check(scores, ids, active)
        if self._warpers:
            scores[~np.isfinite(scores.max(axis=1))] = 0.0  # finished sequences only: their scores are not used
            for warp in self._warpers:
                scores = warp(scores)
        return scores

    @property
    def has_processors(self) -> bool:
        """Whether processors, as opposed to warpers, change the logits."""
        return bool(self._processors)

    def check(self, scores: Scores, ids: Ids, active: NDArray[np.bool_] | None = None) -> None:
        """Raise `ScoreError` if no token can be chosen for an unfinished sequence."""
        best = scores[
            np.arange(len(scores)), scores.argmax(axis=1)
        ]  # NaN where the sequence has a NaN among its scores
        unfinished = slice(None) if active is None else active
        if np.isfinite(best[unfinished]).all():
            return
        step = ids.shape[1] - self.prompt_length
        for i in np.arange(len(best))[unfinished]:
            where = f"scores of sequence {i}, step {step}"
            if np.isnan(best[i]):
                raise ScoreError(f"{where}: got NaN, expected numbers; check the weights, or compute in float32")
            if best[i] == -np.inf:
                raise ScoreError(f"{where}: got -inf for every token, expected one above; relax what forbids tokens")
            if best[i] == np.inf and self._sampling:
                raise ScoreError(f"{where}: got inf, expected finite scores to sample from; check the weights")


class StepScores:
    """The scores and logits of every step so far, if the options ask for them; else None."""

    def __init__(self, options: Options) -> None:
        self.scores: tuple[Array, ...] | None = () if options.output_scores else None
        self.logits: tuple[Array, ...] | None = () if options.output_logits else None

    def append(self, scores: NDArray[np.floating] | None, logits: Array) -> None:
        """Add the scores and logits of one step, both in the precision of the logits."""
        if self.scores is not None and scores is not None:
            self.scores += (scores.astype(logits.dtype),)
        if self.logits is not None:
            self.logits += (logits,)


def _select_processors(
    o: Options, prompt_length: int, padding: NDArray[np.int64] | None
) -> list[Callable[[Scores, Ids], Scores]]:
    chain: list[Callable[[Scores, Ids], Scores]] = []
    if (biases := o.sequence_bias) is not None:
        chain.append(lambda z, ids: sequence_bias(z, ids, biases))
    if (penalty := o.repetition_penalty) is not None and penalty != 1.0:
        chain.append(lambda z, ids: repetition_penalty(z, ids, penalty, skip=padding))
    if (size := o.no_repeat_ngram_size) is not None and size > 0:
        chain.append(lambda z, ids: no_repeat_ngram(z, ids, size))
    if words := o.bad_words_ids:
        chain.append(lambda z, ids: bad_words(z, ids, words))
    if (minimum := o.min_new_tokens) is not None and minimum > 0 and (eos := o.eos_token_id) is not None:
        chain.append(lambda z, ids: min_new_tokens(z, ids.shape[1] - prompt_length, minimum, eos))
    if (tokens := o.suppress_tokens) is not None:
        chain.append(lambda z, ids: suppress_tokens(z, tokens))
    return chain


def _select_warpers(o: Options) -> list[Callable[[Scores], Scores]]:
    # Beams need a token that does not end the text beside each one that does.
    keep = 1 if o.num_beams == 1 else 1 + len(o.eos_token_id or [0])
    chain: list[Callable[[Scores], Scores]] = []
    if (tau := o.temperature) is not None and tau != 1.0:
        chain.append(lambda z: sampling.temperature(z, tau))
    if (k := o.top_k) is not None and k > 0:
        chain.append(lambda z: sampling.top_k(z, k, keep=keep))
    if (p := o.top_p) is not None and p < 1.0:
        chain.append(lambda z: sampling.top_p(z, p, keep=keep))
    if (low := o.min_p) is not None:
        chain.append(lambda z: sampling.min_p(z, low, keep=keep))
    if (mass := o.typical_p) is not None and mass < 1.0:
        chain.append(lambda z: sampling.typical_p(z, mass, keep=keep))
    if (epsilon := o.epsilon_cutoff) is not None and epsilon > 0.0:
        chain.append(lambda z: sampling.epsilon_cutoff(z, epsilon, keep=keep))
    if (eta := o.eta_cutoff) is not None and eta > 0.0:
        chain.append(lambda z: sampling.eta_cutoff(z, eta, keep=keep))
    return chain
