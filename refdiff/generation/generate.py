"""`generate`: check the call, then decode as its options say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.generation import validation
from refdiff.generation.beam import beam_search
from refdiff.generation.contrastive import contrastive_search
from refdiff.generation.decode import decode
from refdiff.generation.options import Options, resolve
from refdiff.generation.processors import ScoreError
from refdiff.generation.results import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from refdiff.generation.speculative import speculative_decode
from refdiff.generation.stopping import Stopping
from refdiff.generation.stream import Streamer
from refdiff.generation.validation import Request
from refdiff.messages import show_value


def generate(
    model: Any,
    input_ids: Any = None,
    attention_mask: Any = None,
    streamer: Streamer | None = None,
    generator: np.random.Generator | None = None,
    seed: int | Sequence[int] | None = None,
    **options: Any,
) -> NDArray[np.int64] | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput:
    """Continue token sequences with a causal language model; options, defaults and results are transformers'.

    num_beams > 1 means beam search. Else do_sample means sampling, penalty_alpha > 0 with top_k > 1 contrastive search,
    and nothing greedy decoding; prompt_lookup_num_tokens or assistant_model makes sampling and greedy decoding faster.
    Without a length, 20 tokens are added.

    A streamer may have a method `progress(stage, done, total)`. It is called with the stage "prompt" before each chunk
    of a long prompt, and with "text" after each step of a beam search.

    Random choices follow from `seed` (one, or one for each prompt), or from one number drawn from `generator`. The
    random numbers of a sequence depend on its own prompt only: the text of a prompt is the same in any batch. With one
    seed, the n-th of several equal prompts has random numbers of its own, as the n-th of `num_return_sequences` has.

    Shapes:
        input_ids (B, T) integers, attention_mask (B, T) of 1 and 0 → int64 ids (B · num_return_sequences, T'),
        prompt included, padded at the end; or a result object with `return_dict_in_generate=True`

    Raises:
        TypeError: an unknown option, a text in place of token ids, or a streamer without the methods of one.
        IndexError: a token id outside the vocabulary.
        ValueError: an option or an input out of its range, or no token can be chosen by the scores.
    """
    if streamer is not None and (isinstance(streamer, type) or not isinstance(streamer, Streamer)):
        raise TypeError(
            f"streamer: got {show_value(streamer)}, expected an object with put and end; pass TextStreamer(tokenizer)"
        )
    try:
        resolved = resolve(model, options)
        result = _run(_read(model, input_ids, attention_mask, streamer, generator, seed, resolved))
    except ScoreError as error:
        raise (ScoreError(f"{model.source}: {error}") if model.source else error) from None
    finally:
        if streamer is not None:
            streamer.end()  # after an error too, or a reader in another thread would wait forever
    return result if resolved.return_dict_in_generate else result.sequences


def _read(
    model: Any,
    input_ids: Any,
    attention_mask: Any,
    streamer: Streamer | None,
    generator: np.random.Generator | None,
    seed: int | Sequence[int] | None,
    options: Options,
) -> Request:
    """Check the arguments of a call and return its request."""
    bos = model.generation_config.get("bos_token_id")
    vocab_size = model.config.vocab_size
    ids = validation.read_ids(input_ids, model.config.bos_token_id if bos is None else bos, vocab_size)
    if options.pad_token_id is not None and options.pad_token_id >= vocab_size and ids.shape[0] > 1:
        raise ValueError(f"pad_token_id: got {options.pad_token_id}, expected 0 to {vocab_size - 1}")
    if np.shape(input_ids)[-1:] == (0,):
        attention_mask = None
    limit = validation.read_max_length(options, ids.shape[1], model.config.max_position_embeddings)
    prompts, prompt_tokens = ids.shape
    # A text is expected to end with the context; the cache stops one that is longer.
    tokens = min(limit, max(prompt_tokens, model.config.max_position_embeddings or limit))
    validation.check_memory(model, options, prompts, tokens)
    if not options.return_dict_in_generate:
        options = replace(options, output_scores=False, output_logits=False)
    return Request(
        model=model,
        ids=ids,
        mask=validation.read_mask(attention_mask, ids, options),
        options=options,
        stopping=Stopping(limit, options.eos_token_id, options.stop_strings, options.tokenizer, options.max_time),
        seed=validation.read_seed(seed, generator, prompts, draws=options.do_sample),
        emit=(lambda ids: None) if streamer is None else streamer.put,
        progress=getattr(streamer, "progress", lambda stage, done, total: None),
    )


def _run(request: Request) -> GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput:
    if request.options.num_beams > 1:
        return beam_search(request)
    if request.options.speculative:
        return speculative_decode(request)
    if request.options.contrastive:
        return contrastive_search(request)
    return decode(request)
