"""Logits to scores: the processors, then for sampling the warpers, in the order in which transformers applies them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from refdiff.generation import processors, sampling
from refdiff.generation.options import Options

Scores = NDArray[np.floating]
Ids = NDArray[np.int64]


class Pipeline:
    """Turns the (B, V) logits after ids (B, T) into the scores that the next token is chosen by.

    Without an active option the logits come back as they are; otherwise the scores are float64.

    Raises:
        ValueError: NaN among the scores of an unfinished row, or nothing but −inf; names the row and the step.
    """

    def __init__(self, options: Options, prompt_length: int, padding: NDArray[np.int64] | None = None) -> None:
        self.prompt_length = prompt_length
        self._sampling = options.do_sample
        self._processors = _processors(options, prompt_length, padding)
        self._warpers = _warpers(options) if options.do_sample else []

    def __call__(self, logits: Scores, ids: Ids, live: NDArray[np.bool_] | None = None) -> Scores:
        self.check(logits, ids, live)
        if not self._processors and not self._warpers:
            return logits
        scores: Scores = logits.astype(np.float64)
        for process in self._processors:
            scores = process(scores, ids)
        self.check(scores, ids, live)
        if self._warpers:
            scores[~np.isfinite(scores.max(axis=1))] = 0.0  # finished rows only: their scores are not used
            for warp in self._warpers:
                scores = warp(scores)
        return scores

    @property
    def has_processors(self) -> bool:
        """Whether anything but warpers changes the logits."""
        return bool(self._processors)

    def check(self, scores: Scores, ids: Ids, live: NDArray[np.bool_] | None = None) -> None:
        """Raise where an unfinished row has scores that no token can be chosen by."""
        best = scores[np.arange(len(scores)), scores.argmax(axis=1)]  # NaN where the row holds one
        rows = slice(None) if live is None else live
        if np.isfinite(best[rows]).all():
            return
        step = ids.shape[1] - self.prompt_length
        for row in np.arange(len(best))[rows]:
            if np.isnan(best[row]):
                raise ValueError(f"row {row}, step {step}: a score is NaN: check the weights, or compute in float32")
            if best[row] == -np.inf:
                raise ValueError(f"row {row}, step {step}: every token has score -inf: relax what forbids tokens")
            if best[row] == np.inf and self._sampling:
                raise ValueError(f"row {row}, step {step}: a score is infinite, which no sampling can follow")


def _processors(
    o: Options, prompt_length: int, padding: NDArray[np.int64] | None
) -> list[Callable[[Scores, Ids], Scores]]:
    chain: list[Callable[[Scores, Ids], Scores]] = []
    if (biases := o.sequence_bias) is not None:
        chain.append(lambda z, ids: processors.sequence_bias(z, ids, biases))
    if (penalty := o.repetition_penalty) is not None and penalty != 1.0:
        chain.append(lambda z, ids: processors.repetition_penalty(z, ids, penalty, skip=padding))
    if (size := o.no_repeat_ngram_size) is not None and size > 0:
        chain.append(lambda z, ids: processors.no_repeat_ngram(z, ids, size))
    if words := o.bad_words_ids:
        chain.append(lambda z, ids: processors.bad_words(z, ids, words))
    if (minimum := o.min_new_tokens) is not None and minimum > 0 and (eos := o.eos_token_id) is not None:
        chain.append(lambda z, ids: processors.min_new_tokens(z, ids.shape[1] - prompt_length, minimum, eos))
    if (tokens := o.suppress_tokens) is not None:
        chain.append(lambda z, ids: processors.suppress_tokens(z, tokens))
    return chain


def _warpers(o: Options) -> list[Callable[[Scores], Scores]]:
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
