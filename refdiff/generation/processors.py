"""The processors of one call of `generate`, in the order in which transformers applies them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array
from refdiff.generation import logits_process as kinds
from refdiff.generation import sampling
from refdiff.generation.logits_process import Ids, LogitsProcessor, Scores
from refdiff.generation.options import Options
from refdiff.generation.watermarking import watermark
from refdiff.messages import show_value
from refdiff.model.inputs import host

if TYPE_CHECKING:
    from refdiff.generation.validation import Request


class ScoreError(ValueError):
    """No token can be chosen by the scores."""


class LogitsProcessors:
    """The processors of a call and, for sampling, its warpers, in the order in which transformers applies them.

    A call converts the (B, V) logits after ids (B, T) to the scores by which the next token is chosen. Without an
    active option it returns the logits unchanged; otherwise the scores are float64.
    """

    def __init__(self, request: Request) -> None:
        options = request.options
        self.prompt_length = request.ids.shape[1]
        self._sampling = options.do_sample
        own = _select(_PROCESSORS, request)
        given = list(options.logits_processor or [])
        kept = {type(process): process for process in reversed(given)}
        merged = [kept.get(type(process), process) for process in own]
        merged += [process for process in given if not any(process is other for other in merged)]
        self._processors = [
            _check_shapes(process) if any(process is other for other in given) else process for process in merged
        ]
        self._warpers = _select(_WARPERS, request) if options.do_sample else []
        self._last = _select(_LAST, request)
        self._repairs = any(isinstance(process, kinds.InfNanRemoveLogitsProcessor) for process in merged)

    def __call__(self, logits: Scores, ids: Ids, active: NDArray[np.bool_] | None = None) -> Scores:
        if not self._repairs:
            self.check(logits, ids, active)
        if not self._processors and not self._warpers and not self._last:
            return logits
        scores: Scores = logits.astype(np.float64)
        for process in self._processors:
            scores = process(ids, scores)
        self.check(scores, ids, active)
        if self._warpers:
            scores[~np.isfinite(scores.max(axis=1))] = 0.0  # finished sequences only: their scores are not used
        with np.errstate(over="ignore"):  # of the smallest number, where invalid values were removed
            for process in (*self._warpers, *self._last):
                scores = process(ids, scores)
        return scores

    def normalize(self, logits: Scores, ids: Ids) -> Scores:
        """Return the log-probabilities that beam search gives to its processors."""
        if not self._repairs:
            self.check(logits, ids)
        with np.errstate(invalid="ignore"):
            return sampling.log_softmax(logits.astype(np.float64))

    @property
    def has_processors(self) -> bool:
        """Whether anything but warpers changes the logits."""
        return bool(self._processors or self._last)

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


_Maker = Callable[[Any, "Request", Any], LogitsProcessor | None]
# option: (the value that is off beside None, what makes its processor of its value, the request and the end tokens)
_PROCESSORS: dict[str, tuple[Any, _Maker]] = {
    "guidance_scale": (1, lambda v, r, eos: kinds.UnbatchedClassifierFreeGuidanceLogitsProcessor(
        v, r.model, r.options.negative_prompt_ids, r.options.negative_prompt_attention_mask)),
    "sequence_bias": (None, lambda v, r, eos: kinds.SequenceBiasLogitsProcessor(v)),
    "encoder_repetition_penalty": (1, lambda v, r, eos: kinds.EncoderRepetitionPenaltyLogitsProcessor(v, r.ids)),
    "repetition_penalty": (1, lambda v, r, eos: kinds.RepetitionPenaltyLogitsProcessor(v, r.padding)),
    "no_repeat_ngram_size": (0, lambda v, r, eos: kinds.NoRepeatNGramLogitsProcessor(v)),
    "encoder_no_repeat_ngram_size": (0, lambda v, r, eos: kinds.EncoderNoRepeatNGramLogitsProcessor(v, r.ids)),
    "bad_words_ids": (None, lambda v, r, eos: kinds.NoBadWordsLogitsProcessor(v, eos)),
    "min_length": (0, lambda v, r, eos: kinds.MinLengthLogitsProcessor(v, eos)
                   if eos is not None and r.options.min_new_tokens is None else None),
    "min_new_tokens": (0, lambda v, r, eos: kinds.MinNewTokensLengthLogitsProcessor(r.ids.shape[1], v, eos)
                       if eos is not None else None),
    "prefix_allowed_tokens_fn": (None, lambda v, r, eos: kinds.PrefixConstrainedLogitsProcessor(
        v, max(r.options.num_beams, r.options.num_return_sequences))),
    "forced_bos_token_id": (None, lambda v, r, eos: kinds.ForcedBOSTokenLogitsProcessor(v)),
    "forced_eos_token_id": (None, lambda v, r, eos: kinds.ForcedEOSTokenLogitsProcessor(r.max_length, v)),
    "remove_invalid_values": (False, lambda v, r, eos: kinds.InfNanRemoveLogitsProcessor()),
    "exponential_decay_length_penalty": (None, lambda v, r, eos: kinds.ExponentialDecayLengthPenalty(
        v, eos, r.ids.shape[1]) if eos is not None else None),
    "suppress_tokens": (None, lambda v, r, eos: kinds.SuppressTokensLogitsProcessor(v)),
    "begin_suppress_tokens": (None, lambda v, r, eos: kinds.SuppressTokensAtBeginLogitsProcessor(
        v, r.ids.shape[1] + (r.ids.shape[1] <= 1 and r.options.forced_bos_token_id is not None))),
}  # fmt: skip
_WARPERS: dict[str, tuple[Any, _Maker]] = {
    "temperature": (1, lambda v, r, eos: kinds.TemperatureLogitsWarper(v)),
    "top_h": (None, lambda v, r, eos: kinds.TopHLogitsWarper(v)),
    "top_k": (0, lambda v, r, eos: kinds.TopKLogitsWarper(v, min_tokens_to_keep=_keep(r))),
    "top_p": (1, lambda v, r, eos: kinds.TopPLogitsWarper(v, min_tokens_to_keep=_keep(r))),
    "min_p": (None, lambda v, r, eos: kinds.MinPLogitsWarper(v, min_tokens_to_keep=_keep(r))),
    "typical_p": (1, lambda v, r, eos: kinds.TypicalLogitsWarper(v, min_tokens_to_keep=_keep(r))),
    "epsilon_cutoff": (0, lambda v, r, eos: kinds.EpsilonLogitsWarper(v, min_tokens_to_keep=_keep(r))),
    "eta_cutoff": (0, lambda v, r, eos: kinds.EtaLogitsWarper(v, min_tokens_to_keep=_keep(r))),
}
_LAST: dict[str, tuple[Any, _Maker]] = {
    "watermarking_config": (None, lambda v, r, eos: watermark(v, r.model.config.vocab_size)),
    "renormalize_logits": (False, lambda v, r, eos: kinds.LogitNormalization()),
}


def _keep(request: Request) -> int:
    """Return how many tokens warpers keep: beams need one that does not end the text beside each one that does."""
    return 1 if request.options.num_beams == 1 else 1 + len(request.options.eos_token_id or [0])


def _select(table: Mapping[str, tuple[Any, _Maker]], request: Request) -> list[LogitsProcessor]:
    """Return what the options of a call turn on."""
    values = {name: getattr(request.options, name) for name in table}
    on = [make(values[name], request, request.options.eos_token_id) for name, (off, make) in table.items()
          if values[name] is not None and values[name] != off]  # fmt: skip
    return [process for process in on if process is not None]


def _check_shapes(process: Any) -> Callable[[Ids, Scores], Scores]:
    """Return a processor of the user that may return an array of any library, but only of the scores' shape."""

    def checked(input_ids: Ids, scores: Scores) -> Scores:
        shape = scores.shape
        result = host("logits_processor", process(input_ids, scores))
        if result.shape != shape:
            raise ValueError(
                f"logits_processor: got scores of shape {result.shape} from {show_value(process)}, expected {shape}"
            )
        return result.astype(np.float64, copy=False)

    return checked
