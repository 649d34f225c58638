"""Contrastive search: of the k most likely tokens, choose one that also differs from the earlier text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refdiff.generation.context import DecodingContext
from refdiff.generation.processors import LogitsProcessors, StepScores
from refdiff.generation.results import GenerateDecoderOnlyOutput
from refdiff.generation.sampling import softmax, top_indices
from refdiff.generation.validation import Request


def degeneration_penalty(candidates: NDArray[np.floating], context: NDArray[np.floating]) -> NDArray[np.floating]:
    """Compute max over j of s(h_v, h_xj), s the cosine similarity (Su et al. 2022, eq. 5, second term).

    Shapes:
        candidates (B, k, D), context (B, T, D), all-zero rows where there is no token → (B, k)
    """
    similarity = _unit(candidates) @ np.swapaxes(_unit(context), 1, 2)
    empty = (context == 0).all(axis=2)
    result: NDArray[np.floating] = np.where(empty[:, None, :], -np.inf, similarity).max(axis=2)
    return result


def _unit(x: NDArray[np.floating]) -> NDArray[np.floating]:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    result: NDArray[np.floating] = x / np.where(norm == 0, 1.0, norm)
    return result


def contrastive_search(request: Request) -> GenerateDecoderOnlyOutput:
    """Decode by x_t = argmax over v in V(k) of (1 − α) p(v | x_<t) − α max_j s(h_v, h_xj) (Su et al. 2022, eq. 5).

    V(k) are the `top_k` most likely tokens after the processors, α is `penalty_alpha`, h the model's last hidden
    states; padding is no part of the context. The k candidates of every sequence are read in one batch, and the cache
    then keeps the chosen ones.

    Raises:
        ValueError: no token can be chosen by the scores; the message has the sequence and the step.
    """
    o = request.options
    alpha = o.penalty_alpha or 0.0
    ids = request.ids
    B, prompt_length = ids.shape
    processors = LogitsProcessors(o, prompt_length, request.padding)
    context = DecodingContext(request.model, request.mask, request.max_length, request.progress)
    unfinished = np.ones(B, dtype=bool)
    lengths = np.full(B, prompt_length)
    steps = StepScores(o)

    request.emit(ids)
    logits, hidden = context.read_hidden(ids)
    if request.mask is not None:
        hidden = hidden * request.mask[:, :, None].astype(hidden.dtype)
    k = min(o.top_k or 1, logits.shape[1])
    repeated = np.repeat(np.arange(B), k)
    while True:
        active = np.ones_like(unfinished) if o.pad_token_id is None else unfinished
        scores = processors(logits, ids, active)
        steps.append(scores, logits)
        options = top_indices(scores, k)
        p = np.take_along_axis(softmax(scores.astype(np.float64)), options, axis=1)

        context.reorder(repeated)
        extended = np.concatenate([ids[repeated], options.reshape(-1, 1)], axis=1)
        next_logits, next_hidden = context.read_hidden(extended)
        next_hidden = next_hidden.reshape(B, k, -1)
        penalty = degeneration_penalty(next_hidden.astype(np.float64), hidden.astype(np.float64))
        value = (1.0 - alpha) * p - alpha * penalty
        value[p == 0.0] = -np.inf  # fewer than k tokens are allowed
        choice = value.argmax(axis=1)

        chosen = np.arange(B) * k + choice
        context.reorder(chosen)
        logits = next_logits[chosen]
        hidden = np.concatenate([hidden, next_hidden[np.arange(B), choice][:, None]], axis=1)
        tokens = np.where(active, options[np.arange(B), choice], o.pad_token_id or 0)
        ids = np.concatenate([ids, tokens[:, None]], axis=1)
        request.emit(tokens)
        lengths[unfinished] = ids.shape[1]
        unfinished &= ~request.stopping(ids, request.padding)
        if not unfinished.any():
            break
    return GenerateDecoderOnlyOutput(
        sequences=ids,
        lengths=lengths,
        scores=steps.scores,
        logits=steps.logits,
        cache=context.cache,
    )
