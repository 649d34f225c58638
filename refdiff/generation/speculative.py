"""Guess several tokens cheaply, check them with one call of the model: the same text in fewer calls.

Greedy decoding keeps a guess if it is what the model would have said. Sampling from p keeps a guess x drawn from q with
probability min(1, p(x) / q(x)), and otherwise draws from max(p − q, 0) / Σ max(p − q, 0): the text is distributed as
without guesses (Leviathan, Kalman & Matias 2023, algorithm 1). A guess from the prompt has q(x) = 1; for it the same
rule is: draw from p, and keep the guess if it is what was drawn. So prompt lookup gives the very text of sampling.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from refdiff.generation.context import Context
from refdiff.generation.pipeline import Pipeline
from refdiff.generation.request import Request
from refdiff.generation.results import GenerateDecoderOnlyOutput
from refdiff.generation.sampling import Uniforms, draw, softmax

Ids = NDArray[np.int64]
Probabilities = NDArray[np.floating]

# The number of guesses adapts as transformers' "heuristic" schedule does: two more after a round in which all were
# right, one less after any other.
_FIRST_GUESSES = 5


def speculative_step(p: Probabilities, q: Probabilities, guess: int, stream: Uniforms) -> int:
    """A token distributed as p, given a guess distributed as q; it is the guess as often as can be.

    Accept with probability min(1, p(x) / q(x)), else draw from norm(max(0, p − q)) (Leviathan et al. 2023, alg. 1).
    Shapes: p, q (V,), each summing to 1 → one token
    """
    if stream.next() * q[guess] < p[guess]:
        return guess
    rest = np.maximum(p - q, 0.0)
    return draw(rest if rest.any() else p, stream.next())  # rounding alone can make q exceed p everywhere


class Guesser(Protocol):
    """Proposes tokens that may follow."""

    def guess(self, ids: Ids, most: int) -> tuple[Ids, list[Probabilities] | None]:
        """Up to `most` tokens that may follow ids (1, T), (t,), and for sampling the distribution of each, or None."""


class PromptLookup:
    """Guesses that what followed the last two tokens (or the last one) before follows them again (Saxena 2023)."""

    def __init__(self, longest_match: int = 2) -> None:
        self._longest_match = longest_match

    def guess(self, ids: Ids, most: int) -> tuple[Ids, list[Probabilities] | None]:
        """The tokens after the first earlier occurrence of the longest match."""
        row = ids[0]
        for size in range(min(self._longest_match, len(row) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(row[:-1], size)
            starts = np.flatnonzero((windows == row[len(row) - size :]).all(axis=1))
            if starts.size:
                after = int(starts[0]) + size
                return row[after : after + most], None
        return row[:0], None


class Assistant:
    """Guesses what a smaller model of the same vocabulary says, with the same options."""

    def __init__(self, request: Request, stream: Uniforms | None) -> None:
        self._context = Context(request.options.assistant_model, request.mask, request.max_length)
        self._pipeline = Pipeline(request.options, request.ids.shape[1], request.padding)
        self._eos = request.options.eos_token_id or []
        self._stream = stream

    def guess(self, ids: Ids, most: int) -> tuple[Ids, list[Probabilities] | None]:
        """The assistant's own continuation, up to an end-of-sequence token."""
        # All but the last token of the text are the prompt and guesses that were right; what it read beyond was wrong.
        self._context.forget(ids.shape[1] - 1)
        text = ids
        distributions: list[Probabilities] = []
        while text.shape[1] < ids.shape[1] + most:
            scores = self._pipeline(self._context.read(text)[:, -1], text)[0]
            if self._stream is None:
                token = int(scores.argmax())
            else:
                distributions.append(softmax(scores.astype(np.float64)))
                token = draw(distributions[-1], self._stream.next())
            text = np.concatenate([text, [[token]]], axis=1)
            if token in self._eos:
                break
        return text[0, ids.shape[1] :], distributions if self._stream is not None else None


def speculative_decode(request: Request) -> GenerateDecoderOnlyOutput:
    """Greedy decoding or sampling of one prompt, checking guesses from the prompt or from an assistant model.

    Raises:
        ValueError: more than one prompt; an assistant of another vocabulary; scores that no token can be chosen by.
    """
    o = request.options
    if request.ids.shape[0] != 1:
        raise ValueError(
            f"prompt_lookup_num_tokens and assistant_model take one prompt, but there are {request.ids.shape[0]} rows, "
            "which would accept different numbers of guesses: call generate for each prompt"
        )
    stream = request.streams(np.arange(1))[0] if o.do_sample else None
    guesser, most = _guesser(request, stream)
    count = min(_FIRST_GUESSES, most)
    pipeline = Pipeline(o, request.ids.shape[1], request.padding)
    context = Context(request.model, request.mask, request.max_length)
    ids = request.ids
    scores_so_far, logits_so_far = [], []

    request.emit(ids)
    finished = False
    while not finished:
        start = ids.shape[1]
        # One token comes from the model itself after the last guess, so one less is worth guessing.
        guesses, q = guesser.guess(ids, min(count, request.max_length - start - 1))
        logits = context.read(np.concatenate([ids, guesses[None, :]], axis=1), keep=len(guesses) + 1)[0]
        right = 0
        for i in range(len(guesses) + 1):
            scores = pipeline(logits[i : i + 1], ids)
            guess = int(guesses[i]) if i < len(guesses) else None
            token = _choose(scores[0], guess, None if q is None or guess is None else q[i], stream)
            ids = np.concatenate([ids, [[token]]], axis=1)
            if o.output_scores:
                scores_so_far.append(scores.astype(logits.dtype))
            if o.output_logits:
                logits_so_far.append(logits[i : i + 1])
            finished = bool(request.stopping(ids, request.padding)[0])
            if finished or token != guess:
                break
            right += 1
        request.emit(ids[:, start:])
        context.forget(ids.shape[1] - 1)
        count = min(most, count + 2) if right == len(guesses) else max(1, count - 1)
    return GenerateDecoderOnlyOutput(
        sequences=ids,
        lengths=np.array([ids.shape[1]]),
        scores=tuple(scores_so_far) if o.output_scores else None,
        logits=tuple(logits_so_far) if o.output_logits else None,
        cache=context.cache,
    )


def _guesser(request: Request, stream: Uniforms | None) -> tuple[Guesser, int]:
    """Who guesses, and how many tokens at most."""
    o = request.options
    if o.prompt_lookup_num_tokens is not None:
        return PromptLookup(), o.prompt_lookup_num_tokens
    sizes = o.assistant_model.config.vocab_size, request.model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(f"assistant_model has {sizes[0]} tokens and the model {sizes[1]}: they need one vocabulary")
    return Assistant(request, stream), request.max_length


def _choose(scores: NDArray[np.floating], guess: int | None, q: Probabilities | None, stream: Uniforms | None) -> int:
    """The next token: the most likely without a stream, else drawn from softmax(scores), by way of a guess from q."""
    if stream is None:
        return int(scores.argmax())
    p = softmax(scores.astype(np.float64))
    if guess is None or q is None:
        return draw(p, stream.next())
    return speculative_step(p, q, guess, stream)
