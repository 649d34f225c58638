"""Greedy decoding and sampling: one token per sequence and step, until every sequence is finished."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, to_numpy
from refdiff.generation.context import DecodingContext
from refdiff.generation.processors import LogitsProcessors, StepScores
from refdiff.generation.results import GenerateDecoderOnlyOutput
from refdiff.generation.sampling import draw, softmax
from refdiff.generation.validation import Request


def decode(request: Request) -> GenerateDecoderOnlyOutput:
    """Extend every sequence by its most likely token, or one drawn from its distribution, until it is finished.

    With sampling, each prompt is repeated `num_return_sequences` times. A finished row is filled with `pad_token_id`;
    without one it continues until all rows are finished, as in transformers.

    Raises:
        ValueError: no token can be chosen by the scores; the message has the row and the step.
    """
    o = request.options
    rows = np.repeat(np.arange(request.ids.shape[0]), o.num_return_sequences)
    ids = request.ids[rows]
    padding = None if request.padding is None else request.padding[rows]
    processors = LogitsProcessors(o, ids.shape[1], padding)
    streams = request.random_streams(rows) if o.do_sample else []
    context = DecodingContext(request.model, request.mask, request.max_length, request.progress)
    device_sampler = request.model.backend.sampler(request.model, o, processors)
    unfinished = np.ones(len(rows), dtype=bool)
    lengths = np.full(len(rows), ids.shape[1])
    steps = StepScores(o)

    def read(all_ids: NDArray[np.int64]) -> Array:
        logits = context.read_on_device(all_ids)
        return to_numpy(logits) if device_sampler is None else logits

    request.emit(ids)
    logits = read(request.ids)
    if o.num_return_sequences > 1:
        context.reorder(rows)
        logits = logits[rows]
    while True:
        active = np.ones_like(unfinished) if o.pad_token_id is None else unfinished
        scores = None
        if device_sampler is not None:
            tokens = device_sampler(logits, ids, active, streams)
        else:
            scores = processors(logits, ids, active)
            if o.do_sample:
                tokens = np.zeros(len(rows), dtype=np.int64)
                for row in np.flatnonzero(active):
                    tokens[row] = draw(softmax(scores[row].astype(np.float64)), streams[row].next())
            else:
                tokens = scores.argmax(axis=1)
        tokens = np.where(active, tokens, o.pad_token_id or 0)
        ids = np.concatenate([ids, tokens[:, None]], axis=1)
        steps.append(scores, logits)
        request.emit(tokens)
        lengths[unfinished] = ids.shape[1]
        unfinished &= ~request.stopping(ids, padding)
        if not unfinished.any():
            break
        logits = read(ids)
    return GenerateDecoderOnlyOutput(
        sequences=ids,
        lengths=lengths,
        scores=steps.scores,
        logits=steps.logits,
        cache=context.cache,
    )
