"""Greedy decoding and sampling: one token per sequence and step, until every sequence is finished."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, to_numpy
from refdiff.generation.processors import LogitsProcessors, StepScores
from refdiff.generation.results import GenerateDecoderOnlyOutput
from refdiff.generation.sampling import draw, softmax
from refdiff.generation.validation import Request


def decode(request: Request) -> GenerateDecoderOnlyOutput:
    """Extend every sequence by its most likely token, or one drawn from its distribution, until it is finished.

    With sampling, each prompt is repeated `num_return_sequences` times. A finished sequence is filled with
    `pad_token_id`; without one it continues until all are finished, as in transformers.
    """
    o = request.options
    prompt_indices = np.repeat(np.arange(request.ids.shape[0]), o.num_return_sequences)
    ids = request.ids[prompt_indices]
    processors = LogitsProcessors(request)
    streams = request.random_streams(prompt_indices) if o.do_sample else []
    context = request.context()
    device_sampler = request.model.backend.sampler(request.model, o, processors)
    unfinished = np.ones(len(prompt_indices), dtype=bool)
    lengths = np.full(len(prompt_indices), ids.shape[1])
    steps = StepScores(o)

    def read(all_ids: NDArray[np.int64]) -> Array:
        logits = context.read_on_device(all_ids)
        return to_numpy(logits) if device_sampler is None else logits

    request.emit(ids)
    logits = read(request.ids)
    if o.num_return_sequences > 1:
        context.reorder(prompt_indices)
        logits = logits[prompt_indices]
    while True:
        active = np.ones_like(unfinished) if o.pad_token_id is None else unfinished
        scores = None
        if device_sampler is not None:
            tokens = device_sampler(logits, ids, active, streams)
        else:
            scores = processors(logits, ids, active)
            if o.do_sample:
                tokens = np.zeros(len(prompt_indices), dtype=np.int64)
                for i in np.flatnonzero(active):
                    tokens[i] = draw(softmax(scores[i].astype(np.float64)), streams[i].next())
            else:
                tokens = scores.argmax(axis=1)
        tokens = np.where(active, tokens, o.pad_token_id or 0)
        ids = np.concatenate([ids, tokens[:, None]], axis=1)
        steps.append(scores, logits)
        request.emit(tokens)
        lengths[unfinished] = ids.shape[1]
        unfinished &= ~request.stopping(ids, steps.scores)
        if not unfinished.any():
            break
        logits = read(ids)
    return GenerateDecoderOnlyOutput(
        sequences=ids,
        lengths=lengths,
        scores=steps.scores,
        logits=steps.logits,
        cache=context.cache,
        **context.outputs,
    )
