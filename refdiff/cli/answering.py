"""One answer of a model: its options as arguments of `generate`, its length limit, and its finish reason."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refdiff import bundled
from refdiff.cli.flags import Number, UsageError
from refdiff.limits import FAR_BEYOND, OPTIONS

if TYPE_CHECKING:
    from refdiff.cli.transcript import Transcript

NUMBERS = {
    "max_new_tokens": Number(int, 0, OPTIONS["max_new_tokens"][1], off="0 = up to the context length"),
    "temperature": Number(float, *OPTIONS["temperature"], or_zero=True, off="0 = greedy"),
    "top_k": Number(int, *OPTIONS["top_k"], off="0 = off"),
    "top_p": Number(float, *OPTIONS["top_p"], off="1 = off"),
    "min_p": Number(float, *OPTIONS["min_p"], off="0 = off"),
    "repetition_penalty": Number(float, *OPTIONS["repetition_penalty"], off="1 = off"),
    "no_repeat_ngram_size": Number(int, *OPTIONS["no_repeat_ngram_size"], off="0 = off"),
    "num_beams": Number(int, *OPTIONS["num_beams"], off="1 = off"),
    "seed": Number(int, 0),
}
"""The numbers that choose tokens, by the names of `generate`'s options."""
BUNDLED_PENALTY = 1.2
"""The default of --repetition-penalty for the bundled model: none of 40 greedy texts loops, 3 without it."""
FILTERS = ("top_k", "top_p", "min_p")
_PASSED_ON = tuple(name for name in NUMBERS if name not in (*FILTERS, "max_new_tokens", "temperature", "seed"))


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, by the names of `generate`."""
    given = {name: getattr(args, name) for name in NUMBERS if name != "seed" and getattr(args, name) is not None}
    if args.model == bundled.NAME:
        given.setdefault("repetition_penalty", BUNDLED_PENALTY)
        if args.chat:  # the more a text has of the same words, the less a penalty helps
            given.setdefault("no_repeat_ngram_size", 4)
    given["stop"] = args.stop or []
    given["ignore_eos"] = args.ignore_eos
    return given


def check_greedy(args: argparse.Namespace) -> None:
    """Raise `UsageError` for --temperature 0 with a filter, which would have no effect."""
    filters = [f"--{name.replace('_', '-')}" for name in FILTERS if getattr(args, name) is not None]
    if args.temperature == 0 and filters:
        raise UsageError(
            f"{', '.join(filters)}: no effect with --temperature 0, which takes the most probable token; leave one out"
        )


def check_template(tokenizer: Any, args: argparse.Namespace) -> None:
    """Raise `UsageError` for --chat if the checkpoint has no default chat template."""
    own = tokenizer.chat_template
    if args.chat and (own is None or (isinstance(own, dict) and "default" not in own)):
        has = "has no chat template" if own is None else f"none of its chat templates ({', '.join(own)}) is the default"
        raise UsageError(f"{args.model}: {has}; leave out --chat, or give a model with one, such as -m bundled")


_FIRST_PART = 16
"""Characters of the first part of a prompt that is counted alone, for each token of that limit."""
_PART = 1_000_000
"""The most characters of a part: 0.8 s and 200 MB (Zen 4)."""


def encode(
    model: Any, tokenizer: Any, prompt: str, messages: Sequence[dict[str, Any]] | None = None
) -> tuple[str, list[int]]:
    """Return the input of the model as text and as ids; `messages` go through the chat template.

    Raises:
        UsageError: the chat template fails.
        ValueError: the prompt is far longer than the context.
    """
    text, more = prompt, {}
    if messages is not None:
        try:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except ValueError as error:  # the template refuses the messages, or fails on them
            raise UsageError(str(error)) from None
        more = {"add_special_tokens": False}
    start, end, tokens = 0, min(_FIRST_PART * _most_tokens(model), _PART), 0
    while end < len(text):
        tokens += len(tokenizer.encode(text[start:end], **more))
        if tokens * 0.99 > _most_tokens(model):  # a word that is cut may have a token more than the whole one
            raise _far_beyond(model, tokens, f" in its first {end:,} characters")
        start, end = end, end + _PART
    ids = tokenizer.encode(text, **more)
    if len(ids) > _most_tokens(model):
        raise _far_beyond(model, len(ids))
    return text, ids


def chat_messages(prompt: str, system: str | None) -> list[dict[str, Any]]:
    """Return the messages of a chat with one prompt."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": prompt}]


def call_options(tokenizer: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `generate` other than prompt, seed and length.

    --temperature decides whether to sample; without it a filter means sampling; with neither the checkpoint decides.
    """
    options = {name: given[name] for name in ("temperature", *FILTERS, *_PASSED_ON) if name in given}
    if given.get("temperature") == 0:
        options = {"do_sample": False, **{name: options[name] for name in _PASSED_ON if name in options}}
    elif any(name in options for name in ("temperature", *FILTERS)):
        options["do_sample"] = True
    options["tokenizer"] = tokenizer  # for stop_strings, which generation_config.json may have too
    if given["stop"]:
        options["stop_strings"] = given["stop"]
    if given["ignore_eos"]:
        options["eos_token_id"] = None
    return options


def check_length(model: Any, given: dict[str, Any]) -> None:
    """Raise `UsageError` for more new tokens than any text needs: the time grows with the square of the length."""
    wanted, most = given.get("max_new_tokens", 0), _most_tokens(model)
    if wanted > most:
        raise UsageError(
            f"-n: got {wanted:,}, expected at most {most:,}, {FAR_BEYOND} times the context of {model.source}"
        )


def _most_tokens(model: Any) -> int:
    return FAR_BEYOND * int(model.config.max_position_embeddings)


def _far_beyond(model: Any, tokens: int, where: str = "") -> ValueError:
    return ValueError(
        f"prompt: got {tokens:,} tokens{where}, expected at most {_most_tokens(model):,}, {FAR_BEYOND} times the "
        f"context of {model.source}; shorten it"
    )


def length_limit(model: Any, given: dict[str, Any], prompt_tokens: int) -> int:
    """Return how many tokens may follow a prompt; without -n they end with the context.

    Raises:
        ValueError: the prompt fills the context and -n is not given.
    """
    context, wanted = model.config.max_position_embeddings, given.get("max_new_tokens")
    free = context - prompt_tokens
    if wanted:
        if wanted > free:
            warnings.warn(
                f"-n {wanted}: prompt and new tokens go beyond the context of {context:,} tokens, past which the model "
                "was not trained",
                stacklevel=2,
            )
            warnings.filterwarnings("ignore", "the text is longer than")  # what the model says when it gets there
        return int(wanted)
    if free < 1:
        raise ValueError(
            f"prompt: got {prompt_tokens:,} tokens, expected fewer than {context:,}, the context of {model.source}; "
            "shorten it, or give -n to go beyond the context"
        )
    in_file = model.generation_config.get("max_new_tokens")  # generate refuses what is no number, naming the file
    default = in_file if type(in_file) is int and in_file > 0 else 128
    return int(free if wanted == 0 else min(default, free))


def finish_reason(model: Any, transcript: Transcript, full: bool, given: dict[str, Any]) -> str:
    """Return why a text ends: stop, eos, or length if the length limit was reached."""
    if transcript.stopped:
        return "stop"
    ends = model.generation_config.get("eos_token_id")
    ended = transcript.ids and transcript.ids[-1] in (ends if isinstance(ends, list) else [ends])
    if ended and not given["ignore_eos"]:
        return "eos"
    return "length" if full else "stop"


def generate_into(
    transcript: Transcript, model: Any, tokenizer: Any, ids: list[int], given: dict[str, Any], seed: int
) -> None:
    """Generate into the transcript, which keeps the text so far after Ctrl-C."""
    limit = length_limit(model, given, len(ids))
    try:
        sequences = model.generate(
            [ids],
            streamer=transcript,
            seed=seed,
            max_new_tokens=limit,
            num_return_sequences=1,
            return_dict_in_generate=False,
            **call_options(tokenizer, given),
        )
    except KeyboardInterrupt:
        transcript.close("interrupted")
    else:
        full = len(sequences[0]) - len(ids) >= limit
        transcript.close(finish_reason(model, transcript, full, given))


def result_fields(transcript: Transcript, seed: int | None, *, echo: str) -> dict[str, Any]:
    """Return the fields of the JSON for one text, the same for one prompt and for many."""
    return {
        "text": echo + transcript.text,
        "finish_reason": transcript.finish_reason,
        "prompt_tokens": transcript.prompt_tokens,
        "generated_tokens": len(transcript.ids),
        "seed": seed,
    }
