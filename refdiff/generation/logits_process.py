"""Logits processors, under transformers' names: from (B, T) ids and (B, V) scores to new scores.

The arguments are not changed. Meaning and order are those of transformers' `generate`; a forbidden token gets −inf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import to_numpy
from refdiff.generation import sampling
from refdiff.generation.options import bias_items, check, integer, number
from refdiff.messages import show_value
from refdiff.model.inputs import host
from refdiff.refused import RefusedAttributes

Scores = NDArray[np.floating]
Ids = NDArray[np.int64]


class LogitsProcessor(RefusedAttributes):
    """Changes the scores of the next token; a subclass is for `generate(logits_processor=[…])`."""

    def __post_init__(self) -> None:
        for entry in fields(self):  # type: ignore[arg-type]  # only dataclasses call this
            value = getattr(self, entry.name)
            if "accepts" in entry.metadata and not entry.metadata["accepts"](value):
                raise ValueError(f"{entry.name}: got {show_value(value)}, expected {entry.metadata['expected']}")

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Return new scores.

        Shapes:
            input_ids (B, T), scores (B, V) → (B, V)
        """
        raise TypeError(f"{type(self).__name__}: got no __call__, expected one (input_ids, scores) → scores")


class LogitsProcessorList(list[Any]):
    """Processors that are applied one after the other."""

    def __call__(self, input_ids: Ids, scores: Scores, **kwargs: Any) -> Scores:
        """Return the scores after all processors, each of which gets `kwargs` too."""
        for process in self:
            scores = process(input_ids, scores, **kwargs)
        return scores


def _ids(tokens: Any) -> list[int]:
    """Return one token id, or several in a list or an array, as a list."""
    return [int(token) for token in host("tokens", tokens).reshape(-1)]


def _are_ids(value: Any) -> bool:
    values = host("tokens", value)
    return values.dtype.kind in "iu" and bool((values >= 0).all())


_EOS = check(_are_ids, "a token id or several")
_POSITIVE = number(0, 1e30, above=True)


def _forbid(scores: Scores, tokens: Any) -> Scores:
    result = scores.copy()
    result[:, [token for token in _ids(tokens) if 0 <= token < scores.shape[1]]] = -np.inf
    return result


def _allow_only(scores: Scores, tokens: Any) -> Scores:
    result = np.full_like(scores, -np.inf)
    result[:, _ids(tokens)] = 0.0
    return result


# ---- processors


class UnbatchedClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """Move the scores away from those of a negative prompt, or of the last token alone (Sanchez et al. 2023, eq. 7).

    z' = u + γ (log p − u), where u are the log-probabilities after the negative prompt and the text.
    """

    def __init__(
        self,
        guidance_scale: float,
        model: Any,
        unconditional_ids: Any = None,
        unconditional_attention_mask: Any = None,
        use_cache: bool = True,
    ) -> None:
        self.guidance_scale, self.model, self.use_cache = guidance_scale, model, use_cache
        self._ids: Any = None if unconditional_ids is None else host("unconditional_ids", unconditional_ids)
        given = unconditional_attention_mask
        self._mask: Any = None if given is None else host("unconditional_attention_mask", given)
        self._cache: Any = None
        self._begun = False

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        scores = sampling.log_softmax(scores)
        if self.guidance_scale == 1:
            return scores
        new = input_ids[:, -1:]
        if not self._begun:
            self._begun = True
            self._ids = new if self._ids is None else self._ids
            self._mask = np.ones_like(self._ids) if self._mask is None else self._mask
            self._ids, self._mask = (np.repeat(x, len(scores) // len(x), axis=0) for x in (self._ids, self._mask))
        else:
            self._ids = np.concatenate([self._ids, new], axis=1)
            self._mask = np.concatenate([self._mask, np.ones_like(new)], axis=1)
        read = 0 if self._cache is None else len(self._cache)
        out = self.model(
            self._ids[:, read:],
            attention_mask=self._mask,
            cache=self._cache,
            use_cache=self.use_cache,
            logits_to_keep=1,
        )
        self._cache = out.cache
        u = sampling.log_softmax(to_numpy(out.logits)[:, -1].astype(scores.dtype))
        return self.guidance_scale * (scores - u) + u


@dataclass
class SequenceBiasLogitsProcessor(LogitsProcessor):
    """Add a bias to the token that would complete a sequence of tokens.

    z'[v] = z[v] + Σ bias(s) over the sequences s = (…prefix, v) whose prefix ends the ids so far.
    """

    sequence_bias: Any

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        added: dict[int, Scores] = {}
        for sequence, value in bias_items(self.sequence_bias):
            *prefix, last = sequence
            if len(prefix) > input_ids.shape[1]:
                continue
            end = input_ids[:, input_ids.shape[1] - len(prefix) :]
            matches = (end == np.array(prefix, dtype=np.int64)).all(axis=1)
            added.setdefault(last, np.zeros(len(scores), scores.dtype))[matches] += value
        result = scores.copy()
        for last, bias in added.items():
            result[:, last] += bias
        return result


@dataclass
class NoBadWordsLogitsProcessor(LogitsProcessor):
    """Forbid the token that would complete one of the words, sequences of token ids; an end token is no word."""

    bad_words_ids: Sequence[Sequence[int]]
    eos_token_id: Any = None

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        # The end of the sequence is not a word: forbidding it would make every text run to its length limit.
        ends = [] if self.eos_token_id is None else [[end] for end in _ids(self.eos_token_id)]
        biases = {tuple(word): -np.inf for word in self.bad_words_ids if list(word) not in ends}
        return SequenceBiasLogitsProcessor(biases)(input_ids, scores)


@dataclass
class EncoderRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Make the tokens of the prompt more likely: divide by the penalty where z < 0, else multiply by it."""

    penalty: float = field(metadata=_POSITIVE)
    encoder_input_ids: Any

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        prompts = host("encoder_input_ids", self.encoder_input_ids)
        prompts = np.repeat(prompts, max(len(scores) // len(prompts), 1), axis=0)
        return RepetitionPenaltyLogitsProcessor(1 / self.penalty)(prompts, scores)


@dataclass
class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Make every token of the sequence so far, prompt included, less likely.

    z'[v] = z[v] / θ where z[v] ≥ 0 and z[v] · θ where z[v] < 0, for v among the ids so far (Keskar et al. 2019, CTRL,
    section 4.1, with the sign handled as transformers handles it). The first `prompt_ignore_length` ids do not count:
    one number, or one for each prompt.
    """

    penalty: float = field(metadata=_POSITIVE)
    prompt_ignore_length: Any = None

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        ignored = 0 if self.prompt_ignore_length is None else self.prompt_ignore_length
        skip = host("prompt_ignore_length", ignored).reshape(-1, 1)
        skip = np.repeat(skip, len(input_ids) // len(skip), axis=0)
        counts = np.broadcast_to(np.arange(input_ids.shape[1]) >= skip, input_ids.shape)
        rows, columns = np.nonzero(counts)
        seen = np.zeros(scores.shape, dtype=bool)
        seen[rows, input_ids[rows, columns]] = True
        return np.where(seen, np.where(scores < 0, scores * self.penalty, scores / self.penalty), scores)


@dataclass
class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbid the token that would repeat an n-gram of the sequence (Paulus et al. 2017, section 2.5, for any n)."""

    ngram_size: int = field(metadata=integer(1))

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        return _forbid_ngrams(scores, input_ids, input_ids, self.ngram_size)


@dataclass
class EncoderNoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbid the token that would repeat an n-gram of the prompt."""

    encoder_ngram_size: int = field(metadata=integer(1))
    encoder_input_ids: Any

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        prompts = np.atleast_2d(host("encoder_input_ids", self.encoder_input_ids))
        prompts = np.repeat(prompts, len(scores) // len(prompts), axis=0)
        return _forbid_ngrams(scores, input_ids, prompts, self.encoder_ngram_size)


def _forbid_ngrams(scores: Scores, ids: Ids, texts: Ids, size: int) -> Scores:
    """Forbid the tokens that follow the last size − 1 ids somewhere in `texts`, one for each sequence."""
    if size > texts.shape[1] or size > ids.shape[1] + 1:
        return scores
    windows = np.lib.stride_tricks.sliding_window_view(texts, size, axis=1)
    prefix = ids[:, ids.shape[1] - size + 1 :]
    rows, starts = np.nonzero((windows[:, :, :-1] == prefix[:, None, :]).all(axis=2))
    result = scores.copy()
    result[rows, windows[rows, starts, -1]] = -np.inf
    return result


@dataclass
class MinLengthLogitsProcessor(LogitsProcessor):
    """Forbid the end tokens until prompt and text together have `min_length` tokens."""

    min_length: int = field(metadata=integer(0))
    eos_token_id: Any
    device: Any = None

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        return _forbid(scores, self.eos_token_id) if input_ids.shape[1] < self.min_length else scores.copy()


@dataclass
class MinNewTokensLengthLogitsProcessor(LogitsProcessor):
    """Forbid the end tokens until `min_new_tokens` tokens follow the prompt."""

    prompt_length_to_skip: int = field(metadata=integer(0))
    min_new_tokens: int = field(metadata=integer(0))
    eos_token_id: Any
    device: Any = None

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        least = self.prompt_length_to_skip + self.min_new_tokens
        return MinLengthLogitsProcessor(least, self.eos_token_id)(input_ids, scores)


@dataclass
class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Allow only the tokens that a function of the prompt's index and the ids so far (T,) returns.

    Where all of these are forbidden already in every beam of a prompt, they are allowed again.
    """

    prefix_allowed_tokens_fn: Callable[[int, Ids], Iterable[int]]
    num_beams: int

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        added = np.full_like(scores, -np.inf)
        for row, ids in enumerate(input_ids):
            allowed = _ids(list(self.prefix_allowed_tokens_fn(row // self.num_beams, ids)))
            if not allowed:
                raise ValueError(
                    f"prefix_allowed_tokens_fn: got no token for prompt {row // self.num_beams}, expected one or more"
                )
            added[row, allowed] = 0.0
        result = scores + added
        stuck = np.isneginf(result.max(axis=1)).reshape(-1, self.num_beams).all(axis=1)
        return np.where(np.repeat(stuck, self.num_beams)[:, None], added, result)


@dataclass
class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """Allow nothing but a token after a prompt of one token."""

    bos_token_id: int

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        return _allow_only(scores, self.bos_token_id) if input_ids.shape[1] == 1 else scores


@dataclass
class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """Allow nothing but the end tokens at the last place before `max_length`."""

    max_length: int
    eos_token_id: Any = field(metadata=_EOS)
    device: Any = None

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        return _allow_only(scores, self.eos_token_id) if input_ids.shape[1] == self.max_length - 1 else scores


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """Replace NaN by 0, and infinities by the largest and smallest number of the scores' precision."""

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        return np.nan_to_num(scores)


@dataclass
class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Make the end tokens more likely with each token past a start, counted from the prompt's end.

    z'[e] = z[e] + |z[e]| (factor ** n − 1) for the n-th token past the start
    """

    exponential_decay_length_penalty: tuple[int, float]
    eos_token_id: Any = field(metadata=_EOS)
    input_ids_seq_length: int

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        start, factor = self.exponential_decay_length_penalty
        past = input_ids.shape[1] - start - self.input_ids_seq_length
        result = scores.copy()
        if past > 0:
            ends = _ids(self.eos_token_id)
            size = np.where(np.isfinite(scores[:, ends]), np.abs(scores[:, ends]), 0.0)
            result[:, ends] += size * (float(factor) ** past - 1)
        return result


@dataclass
class SuppressTokensLogitsProcessor(LogitsProcessor):
    """Forbid tokens; ids past the vocabulary name nothing and are ignored."""

    suppress_tokens: Any
    device: Any = None

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        return _forbid(scores, self.suppress_tokens)


@dataclass
class SuppressTokensAtBeginLogitsProcessor(LogitsProcessor):
    """Forbid tokens as the first after `begin_index` ids."""

    begin_suppress_tokens: Any
    begin_index: int
    device: Any = None

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        return _forbid(scores, self.begin_suppress_tokens) if input_ids.shape[1] == self.begin_index else scores


class LogitNormalization(LogitsProcessor):
    """Replace scores by the logarithms of their softmax."""

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        return sampling.log_softmax(scores)


# ---- warpers


def _warper(
    kind: str,
    function: Callable[..., Scores],
    name: str,
    accepted: dict[str, Any],
    options: tuple[str, ...] = ("fill", "keep"),
    **default: Any,
) -> Any:
    """Return the class `kind` of a function of `sampling`: `(value, filter_value=-inf, min_tokens_to_keep=1)`."""

    def call(self: Any, input_ids: Ids, scores: Scores) -> Scores:
        return function(scores, getattr(self, name), **{key: getattr(self, _OPTIONS[key]) for key in options})

    entries: list[Any] = [
        (name, float, field(metadata=accepted, **default)),
        ("filter_value", float, -np.inf),
        ("min_tokens_to_keep", int, field(default=1, metadata=integer(1))),
        ("device", Any, None),
    ]
    namespace = {"__call__": call, "__doc__": function.__doc__, "__module__": __name__}
    return make_dataclass(kind, entries, bases=(LogitsProcessor,), namespace=namespace)


_OPTIONS = {"fill": "filter_value", "keep": "min_tokens_to_keep"}
_SHARE = number(0, 1, above=True, below=True)
TemperatureLogitsWarper = _warper("TemperatureLogitsWarper", sampling.temperature, "temperature", _POSITIVE, ())
TopHLogitsWarper = _warper("TopHLogitsWarper", sampling.top_h, "top_h", number(0, 1, above=True), ("fill",))
TopKLogitsWarper = _warper("TopKLogitsWarper", sampling.top_k, "top_k", integer(1))
TopPLogitsWarper = _warper("TopPLogitsWarper", sampling.top_p, "top_p", number(0, 1))
MinPLogitsWarper = _warper("MinPLogitsWarper", sampling.min_p, "min_p", number(0, 1))
TypicalLogitsWarper = _warper("TypicalLogitsWarper", sampling.typical_p, "mass", _SHARE, default=0.9)
EpsilonLogitsWarper = _warper("EpsilonLogitsWarper", sampling.epsilon_cutoff, "epsilon", _SHARE)
EtaLogitsWarper = _warper("EtaLogitsWarper", sampling.eta_cutoff, "epsilon", _SHARE)
