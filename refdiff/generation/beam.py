"""Beam search and beam sampling: keep the num_beams best continuations of each prompt.

The rules are those of transformers 5.24, to the token. Each step ranks the best (1 + number of end tokens) · num_beams
continuations, or 2 · num_beams without end tokens. Those among the first num_beams that end the text are finished, and
the best num_beams of the others continue. A finished text scores log p / length ** length_penalty, where length leaves
out the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.generation.options import Options
from refdiff.generation.processors import LogitsProcessors, StepScores
from refdiff.generation.results import GenerateBeamDecoderOnlyOutput
from refdiff.generation.sampling import Uniforms, draw_without_replacement, top_indices
from refdiff.generation.validation import Request

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]

# The score of a beam that does not exist: transformers' number, above the −inf of a forbidden token.
_NO_BEAM = -1.0e9


@dataclass
class Beams:
    """n texts a prompt: ids (B, n, T), scores (B, n), the beam of each token (B, n, t), finished (B, n)."""

    ids: Ids
    scores: NDArray[np.float64]
    origins: Ids
    finished: Flags

    def pick(self, index: Ids) -> Beams:
        """Return the beams at `index` (B, k) of each prompt."""
        deep = index[:, :, None]
        return Beams(
            np.take_along_axis(self.ids, deep, axis=1),
            np.take_along_axis(self.scores, index, axis=1),
            np.take_along_axis(self.origins, deep, axis=1),
            np.take_along_axis(self.finished, index, axis=1),
        )

    def append(self, tokens: Ids, origins: Ids) -> None:
        """Add a token to every text, and the beam that it came from; both (B, n), or one value for all."""
        tokens, origins = (np.broadcast_to(x, self.scores.shape)[:, :, None] for x in (tokens, origins))
        self.ids = np.concatenate([self.ids, tokens], axis=2)
        self.origins = np.concatenate([self.origins, origins], axis=2)

    def best(self, k: int) -> Beams:
        """Return the k best by score, best first."""
        return self.pick(top_indices(self.scores, k))


def beam_search(request: Request) -> GenerateBeamDecoderOnlyOutput:
    """Return the best `num_return_sequences` texts of each prompt by log-probability over length ** length_penalty.

    With `do_sample`, each step draws its continuations without replacement, where beam search takes the best.
    """
    o = request.options
    (B, prompt_length), n, k = request.ids.shape, o.num_beams, o.num_return_sequences
    if o.stop_strings is not None and o.pad_token_id is None and B * k > 1:
        raise ValueError("pad_token_id: got none, expected one for several beam results with stop_strings")
    prompt_indices = np.repeat(np.arange(B), n)
    processors = LogitsProcessors(request)
    streams = request.random_streams(np.arange(B)) if o.do_sample else []
    context = request.context()
    running, done = _start(request)
    improvable = np.ones(B, dtype=bool)
    steps = StepScores(o)

    request.emit(np.repeat(request.ids, k, axis=0))
    flat = request.ids[prompt_indices]
    logits = context.read(request.ids)[prompt_indices, -1]
    context.reorder(prompt_indices)
    for length in range(prompt_length + 1, request.max_length + 1):  # with the token that this round adds
        log_p = processors(processors.normalize(logits, flat), flat)
        steps.append(log_p, logits)
        candidates = _candidates(running, log_p.reshape(B, n, -1), o, streams)
        K = candidates.scores.shape[1]
        hits = request.stopping(candidates.ids.reshape(B * K, length), steps.scores).reshape(B, K)
        done = _finish(done, candidates, hits, improvable, length - prompt_length, o)
        candidates.scores = candidates.scores + hits * _NO_BEAM
        running = candidates.best(n)
        context.reorder(running.origins[:, :, -1].reshape(-1))

        improvable &= _may_improve(running, done, length - prompt_length, request.max_length - prompt_length, o)
        full = done.finished.all(axis=1) if o.early_stopping is True else np.zeros(B, dtype=bool)
        request.progress("text", length - prompt_length, request.max_length - prompt_length)
        if not improvable.any() or full.all() or hits.all():
            break
        flat = running.ids.reshape(B * n, length)
        logits = context.read(flat)[:, -1]

    lengths = (done.origins[:, :k] >= 0).sum(axis=2)
    generated = int(lengths.max())
    sequences = done.ids[:, :k, : prompt_length + generated].reshape(B * k, -1)
    request.emit(sequences[:, prompt_length:])
    return GenerateBeamDecoderOnlyOutput(
        sequences=sequences,
        lengths=prompt_length + lengths.reshape(B * k),
        sequences_scores=done.scores[:, :k].reshape(-1) if o.output_scores else None,
        scores=steps.scores,
        logits=steps.logits,
        beam_indices=done.origins[:, :k, :generated].reshape(B * k, -1),
        cache=context.cache,
        **context.outputs,
    )


def _start(request: Request) -> tuple[Beams, Beams]:
    """Return the beams before the first step: running ones, of which only the first counts, and no finished one."""
    B, n = len(request.ids), request.options.num_beams
    ids = np.repeat(request.ids[:, None, :], n, axis=1)
    origins = np.empty((B, n, 0), dtype=np.int64)
    none_finished = np.zeros((B, n), dtype=bool)
    first = np.full((B, n), _NO_BEAM)
    first[:, 0] = 0.0  # n equal beams would stay equal for ever
    return Beams(ids, first, origins, none_finished), Beams(ids, np.full((B, n), _NO_BEAM), origins, none_finished)


def _candidates(running: Beams, log_p: NDArray[np.floating], o: Options, streams: list[Uniforms]) -> Beams:
    """Return the best (or drawn) one-token continuations of the running beams, best first.

    log_p: (B, n, V) → Beams (B, K, …), K = max(2, 1 + number of end tokens) · n
    """
    B, n, V = log_p.shape
    K = min(max(2, 1 + len(o.eos_token_id or [])) * n, n * V)
    totals = (log_p + running.scores[:, :, None]).reshape(B, n * V)
    if o.do_sample:
        drawn = [draw_without_replacement(weights, K, stream) for weights, stream in zip(totals, streams, strict=True)]
        index = np.stack(drawn)
        order = np.argsort(-np.take_along_axis(totals, index, axis=1), axis=1, kind="stable")
        index = np.take_along_axis(index, order, axis=1)
    else:
        index = top_indices(totals, K)
    beam = index // V
    result = running.pick(beam)
    result.scores = np.take_along_axis(totals, index, axis=1)
    result.append(index % V, beam + np.arange(B)[:, None] * n)
    return result


def _finish(done: Beams, candidates: Beams, hits: Flags, improvable: Flags, generated: int, o: Options) -> Beams:
    """Return the best finished texts, those that this step finished included."""
    n = o.num_beams
    new = hits.copy()
    new[:, n:] = False  # the others only keep enough beams running
    scores = candidates.scores / generated**o.length_penalty
    closed = ~improvable
    if o.early_stopping is True:
        closed = closed | done.finished.all(axis=1)
    scores = scores + closed[:, None] * _NO_BEAM + ~new * _NO_BEAM
    # transformers fills up with the end token where pad_token_id is 0, because 0 counts as "not set" there.
    done.append(np.array(o.pad_token_id or (o.eos_token_id or [0])[0]), np.array(-1))
    merged = Beams(
        np.concatenate([done.ids, candidates.ids], axis=1),
        np.concatenate([done.scores, scores], axis=1),
        np.concatenate([done.origins, candidates.origins], axis=1),
        np.concatenate([done.finished, new], axis=1),
    )
    return merged.best(n)


def _may_improve(running: Beams, done: Beams, generated: int, longest: int, o: Options) -> Flags:
    """Return whether the best running beam of each prompt may still beat the worst finished one, (B,).

    transformers' heuristic scores the running beam as if it ended now. With early_stopping="never" and a positive
    length_penalty, it scores it as if it reached the longest length without losing probability.
    """
    length = longest if o.early_stopping == "never" and o.length_penalty > 0 else generated
    hope = running.scores[:, :1] / length**o.length_penalty
    worst = np.where(done.finished, done.scores.min(axis=1, keepdims=True), _NO_BEAM)
    result: Flags = (hope > worst).any(axis=1)
    return result
