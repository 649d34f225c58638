"""Speculative decoding: guess several tokens cheaply, check them with one call of the model.

Greedy decoding keeps a guess if it is what the model would choose. Sampling from p keeps a guess x drawn from q with
probability min(1, p(x) / q(x)), and otherwise draws from max(p − q, 0) / Σ max(p − q, 0). The text is distributed as
without guesses (Leviathan, Kalman & Matias 2023, algorithm 1). A guess from the prompt has q(x) = 1. The rule is then
to draw from p, and to keep the guess if it was drawn. So prompt lookup changes no token of a sampled text.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from refdiff.generation.context import DecodingContext
from refdiff.generation.processors import LogitsProcessors, StepScores
from refdiff.generation.results import GenerateDecoderOnlyOutput
from refdiff.generation.sampling import Uniforms, draw, softmax
from refdiff.generation.validation import Request

Ids = NDArray[np.int64]
Probabilities = NDArray[np.floating]

MAX_MATCH = 16
"""Matches are not compared beyond this many tokens."""

EXPECTED_RATES = (0.3, 0.5, 0.98)
"""The assumed share of correct guesses after a match of 1, 2 and more tokens, before any was tried."""

MAX_OCCURRENCES = 4
"""The earlier occurrences of a match count as at most this many guesses."""

DRAFT_COST, GUESS_COST = 0.2, 0.05
"""The extra cost of a pass with guesses, and of each guess, in passes with one token."""


def speculative_step(p: Probabilities, q: Probabilities, guess: int, stream: Uniforms) -> int:
    """Draw a token distributed as p, given a guess distributed as q, which is kept as often as possible.

    Accept with probability min(1, p(x) / q(x)), else draw from norm(max(0, p − q)) (Leviathan et al. 2023, alg. 1).

    Shapes:
        p, q (V,), each summing to 1 → one token
    """
    if stream.next() * q[guess] < p[guess]:
        return guess
    rest = np.maximum(p - q, 0.0)
    return draw(rest if rest.any() else p, stream.next())  # rounding alone can make q exceed p everywhere


class AcceptanceRate:
    """The share of accepted guesses of one kind: at first `expected`, later the recent rate."""

    keep, weight = 0.95, 2
    """The factor by which a round shrinks earlier counts, and the number of guesses that `expected` counts as."""

    def __init__(self, expected: float) -> None:
        self._expected = expected
        self._accepted = self._tried = 0.0

    def decay(self) -> None:
        """Give past rounds less weight, so that a kind of guess that was never accepted is tried again."""
        self._accepted *= self.keep
        self._tried *= self.keep

    def learn(self, guessed: int, accepted: int) -> None:
        """Count the accepted guesses and the first rejected one; those after it were not tried."""
        self._accepted += accepted
        self._tried += min(accepted + 1, guessed)

    def best_draft_length(self, max_length: int, alike: int = 1, places: int = 1) -> int:
        """Return the number of guesses, at most `max_length`, with the most tokens per cost of their pass.

        If a share a is accepted, n guesses give 1 + a + … + aⁿ tokens. Their pass costs 1 + `DRAFT_COST` +
        n `GUESS_COST` passes with one token: 1.25 with one guess, 1.95 with 15.
        The match occurred `places` times, `alike` of them before the same token. This counts as places − 1 guesses of
        which alike − 1 were accepted, scaled down to at most `MAX_OCCURRENCES` guesses.
        """
        counted = min(1.0, MAX_OCCURRENCES / max(places - 1, 1))
        accepted = self._accepted + self.weight * self._expected + counted * (alike - 1)
        share = accepted / (self._tried + self.weight + counted * (places - 1))
        n = np.arange(max_length + 1)
        cost = np.where(n > 0, 1 + DRAFT_COST + GUESS_COST * n, 1.0)
        return int((np.cumsum(share**n) / cost).argmax())


class PromptLookup:
    """Guesses from the prompt: what followed earlier occurrences of the text's end (Saxena 2023), at most `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rates = [AcceptanceRate(expected) for expected in EXPECTED_RATES]
        self._kind = self._rates[0]

    def guess(self, ids: Ids, most: int) -> tuple[Ids, list[Probabilities] | None]:
        """Return what most often followed the longest matches, or of equally frequent tokens the latest.

        Shapes:
            ids (1, T) → (t,), at most `most` tokens. The second value is None: these guesses have no distribution.
        """
        text = ids[0]
        after, size = _longest_matches(text)
        if not size:
            return text[:0], None
        self._kind = self._rates[min(size, len(self._rates)) - 1]
        alike = int(np.unique(text[after], return_counts=True)[1].max())
        count = self._kind.best_draft_length(max(min(most, self._most), 0), alike, len(after))
        guesses = np.empty(count, text.dtype)
        for i in range(len(guesses)):
            # Past the end of the text, the tokens after the match repeat.
            following = text[after + i % (len(text) - after)]
            tokens, latest, times = np.unique(following[::-1], return_index=True, return_counts=True)
            often = times == times.max()
            guesses[i] = tokens[often][latest[often].argmin()]
            after = after[following == guesses[i]]
        return guesses, None

    def learn(self, guessed: int, accepted: int) -> None:
        """Update the rate of this match length."""
        for rate in self._rates:
            rate.decay()
        self._kind.learn(guessed, accepted)


def _longest_matches(text: Ids) -> tuple[Ids, int]:
    """Return the places after earlier occurrences of the longest end of the text (T,), and that end's length."""
    size, last = 0, len(text) - 1
    ends = np.arange(last)  # where an earlier occurrence may end
    while size < MAX_MATCH:
        longer = ends[ends >= size]
        longer = longer[text[longer - size] == text[last - size]]
        if not longer.size:
            break
        ends, size = longer, size + 1
    return ends + 1, size


class Assistant:
    """Guesses of a smaller model with the same vocabulary and options.

    The number of guesses follows transformers' "heuristic" schedule: two more after a round in which all were accepted,
    one less after any other. A round without guesses, at the very end of a text, does not count.
    """

    def __init__(self, request: Request, stream: Uniforms | None) -> None:
        assistant = request.options.assistant_model
        self._context = DecodingContext(assistant, request.mask, request.max_length)
        # Processors with a state belong to the text, not to guesses of it.
        stateless = replace(request.options, guidance_scale=None, watermarking_config=None, logits_processor=None)
        self._processors = LogitsProcessors(replace(request, model=assistant, options=stateless))
        self._eos = request.options.eos_token_id or []
        self._stream = stream
        self._count = 5

    def guess(self, ids: Ids, most: int) -> tuple[Ids, list[Probabilities] | None]:
        """Return the assistant's continuation, up to an end-of-sequence token, and for sampling its distributions.

        Shapes:
            ids (1, T) → (t,), at most `most` tokens; None or t distributions (V,)
        """
        # The assistant has read the earlier text and its own guesses. The accepted ones are in the text now, followed
        # by one token of the model: from the place of that token on, the assistant read something else.
        self._context.crop(ids.shape[1] - 1)
        most = min(most, self._count)
        text = ids
        distributions: list[Probabilities] = []
        while text.shape[1] < ids.shape[1] + most:
            scores = self._processors(self._context.read(text)[:, -1], text)[0]
            if self._stream is None:
                token = int(scores.argmax())
            else:
                distributions.append(softmax(scores.astype(np.float64)))
                token = draw(distributions[-1], self._stream.next())
            text = np.concatenate([text, [[token]]], axis=1)
            if token in self._eos:
                break
        return text[0, ids.shape[1] :], distributions if self._stream is not None else None

    def learn(self, guessed: int, accepted: int) -> None:
        """Adapt the number of guesses."""
        if guessed:
            self._count = self._count + 2 if accepted == guessed else max(1, self._count - 1)


def speculative_decode(request: Request) -> GenerateDecoderOnlyOutput:
    """Decode one prompt greedily or by sampling, checking guesses from the prompt or from an assistant model."""
    o = request.options
    if request.ids.shape[0] != 1:
        raise ValueError(
            f"input_ids: got {request.ids.shape[0]} prompts, expected 1 with prompt_lookup_num_tokens or "
            "assistant_model; call generate for each"
        )
    stream = request.random_streams(np.arange(1))[0] if o.do_sample else None
    guesser = _guesser(request, stream)
    processors = LogitsProcessors(request)
    context = request.context()
    ids = request.ids
    steps = StepScores(o)

    request.emit(ids)
    finished = False
    while not finished:
        start = ids.shape[1]
        # After the last guess one token comes from the model itself: guess one less.
        guesses, q = guesser.guess(ids, context.count_alike(start, request.max_length - start - 1))
        logits = context.read(np.concatenate([ids, guesses[None, :]], axis=1), keep=len(guesses) + 1)[0]
        accepted = 0
        for i in range(len(guesses) + 1):
            scores = processors(logits[i : i + 1], ids)
            guess = int(guesses[i]) if i < len(guesses) else None
            token = _choose(scores[0], guess, None if q is None or guess is None else q[i], stream)
            ids = np.concatenate([ids, [[token]]], axis=1)
            steps.append(scores, logits[i : i + 1])
            finished = bool(request.stopping(ids, steps.scores)[0])
            if finished or token != guess:
                break
            accepted += 1
        request.emit(ids[:, start:])
        context.crop(ids.shape[1] - 1)
        guesser.learn(len(guesses), accepted)
    return GenerateDecoderOnlyOutput(
        sequences=ids,
        lengths=np.array([ids.shape[1]]),
        scores=steps.scores,
        logits=steps.logits,
        cache=context.cache,
    )


def _guesser(request: Request, stream: Uniforms | None) -> PromptLookup | Assistant:
    """Return the source of guesses that the options select."""
    o = request.options
    if o.prompt_lookup_num_tokens is not None:
        return PromptLookup(o.prompt_lookup_num_tokens)
    sizes = o.assistant_model.config.vocab_size, request.model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(f"assistant_model: got a vocabulary of {sizes[0]} tokens, expected the model's {sizes[1]}")
    return Assistant(request, stream)


def _choose(scores: NDArray[np.floating], guess: int | None, q: Probabilities | None, stream: Uniforms | None) -> int:
    """Return the most likely token without a stream, else a draw from softmax(scores) given a guess from q."""
    if stream is None:
        return int(scores.argmax())
    p = softmax(scores.astype(np.float64))
    if guess is None or q is None:
        return draw(p, stream.next())
    return speculative_step(p, q, guess, stream)
