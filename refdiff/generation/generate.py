"""`generate`: check the call, then decode as its options say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.generation import validation
from refdiff.generation.beam import beam_search
from refdiff.generation.decode import decode
from refdiff.generation.options import resolve
from refdiff.generation.processors import ScoreError
from refdiff.generation.results import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from refdiff.generation.speculative import speculative_decode
from refdiff.generation.validation import Request
from refdiff.messages import show_value


def generate(
    model: Any,
    input_ids: Any = None,
    attention_mask: Any = None,
    streamer: Any = None,
    generator: np.random.Generator | None = None,
    seed: int | Sequence[int] | None = None,
    *,
    generation_config: Any = None,
    inputs: Any = None,
    inputs_embeds: Any = None,
    cache: Any = None,
    past_key_values: Any = None,
    bos_token_id: int | None = None,
    **options: Any,
) -> NDArray[np.int64] | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput:
    """Continue token sequences with a causal language model; options, defaults and results are transformers'.

    num_beams > 1 means beam search. Else do_sample means sampling, and nothing greedy decoding;
    prompt_lookup_num_tokens or assistant_model makes sampling and greedy decoding faster. Without a length, 20 tokens
    are added.

    Options may come in a `generation_config` too, which may stand second, as in transformers. `cache` holds the keys
    and values of the first of the ids, from an earlier call. `inputs_embeds` are read in place of the prompt's ids;
    without ids the result has the new ones alone. `inputs` is another name of `input_ids`, and `past_key_values` of
    `cache`.

    A streamer may have a method `progress(stage, done, total)`. It is called with the stage "prompt" before each chunk
    of a long prompt, and with "text" after each step of a beam search.

    Random choices follow from `seed` (one, or one for each prompt), or from one number drawn from `generator`. The
    random numbers of a sequence depend on its own prompt only: the text of a prompt is the same in any batch. With one
    seed, the n-th of several equal prompts has random numbers of its own, as the n-th of `num_return_sequences` has. An
    assistant_model needs more of them: a seed gives another text than without it, of the same distribution.

    Shapes:
        input_ids (B, T) integers, attention_mask (B, T) of 1 and 0, inputs_embeds (B, T, D)
        → int64 ids (B · num_return_sequences, T'), prompt included, padded at the end; or a result object with
        `return_dict_in_generate=True`

    Raises:
        TypeError: an unknown option, a text in place of token ids, or a streamer without the methods of one.
        IndexError: a token id outside the vocabulary.
        ValueError: an option or an input out of its range, or no token can be chosen by the scores.
    """
    methods = (getattr(streamer, name, None) for name in ("put", "end"))
    if streamer is not None and (isinstance(streamer, type) or not all(map(callable, methods))):
        raise TypeError(
            f"streamer: got {show_value(streamer)}, expected an object with put and end; pass TextStreamer(tokenizer)"
        )
    try:
        if callable(getattr(attention_mask, "to_dict", None)):  # the second argument of transformers' generate
            generation_config = _either("generation_config", generation_config, "the second argument", attention_mask)
            attention_mask = None
        o = resolve(model, options, generation_config)
        input_ids = _either("input_ids", input_ids, "inputs", inputs)
        cache = _either("cache", cache, "past_key_values", past_key_values)
        embeds = None if inputs_embeds is None else validation.read_embeds(inputs_embeds, input_ids)
        if input_ids is None and embeds is not None:
            ids = np.empty((len(embeds), 0), np.int64)
        else:
            bos = model.generation_config.get("bos_token_id") if bos_token_id is None else bos_token_id
            ids = validation.read_ids(input_ids, bos, model.config.vocab_size)
        validation.check_cache(cache, ids)
        missing = 0 if embeds is None else embeds.shape[1] - ids.shape[1]
        o, max_length = validation.read_lengths(model, o, ids, missing)
        attention_mask = None if np.shape(input_ids)[-1:] == (0,) else attention_mask
        has_steps = o.return_dict_in_generate
        record = [name for name in ("attentions", "hidden_states") if has_steps and getattr(o, f"output_{name}")]
        request = Request(
            model=model,
            ids=ids,
            mask=validation.read_mask(attention_mask, np.pad(ids, ((0, 0), (missing, 0)), constant_values=-1), o),
            options=o if has_steps else replace(o, output_scores=False, output_logits=False),
            max_length=max_length,
            seed=validation.read_seed(seed, generator, len(ids), draws=o.do_sample),
            emit=(lambda ids: None) if streamer is None else streamer.put,
            progress=getattr(streamer, "progress", lambda stage, done, total: None),
            cache=cache,
            inputs_embeds=embeds,
            record=tuple(record),
            missing=missing,
        )
        result = _run(request)
        if options.get("use_cache") is False:
            result = replace(result, cache=None)
    except ScoreError as error:
        raise (ScoreError(f"{model.source}: {error}") if model.source else error) from None
    finally:
        if streamer is not None:
            streamer.end()  # after an error too, or a reader in another thread would wait forever
    return result if has_steps else result.sequences


def _either(name: str, value: Any, other_name: str, other: Any) -> Any:
    """Return the argument that was given under one of its two names."""
    if value is not None and other is not None:
        raise ValueError(f"{name}, {other_name}: got both, expected one of them, which are two names of one argument")
    return other if value is None else value


def _run(request: Request) -> GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput:
    if request.options.num_beams > 1:
        return beam_search(request)
    if request.options.speculative and request.inputs_embeds is None:
        return speculative_decode(request)
    return decode(request)
