"""A prompt's options → a call of `generate`, and what a line of JSON says of its text: for one prompt and for many."""

from __future__ import annotations

import argparse
from typing import Any

from refdiff.cli.flags import UsageError
from refdiff.cli.generate_flags import NUMBERS
from refdiff.cli.transcript import Transcript

FILTERS = ("top_k", "top_p", "min_p")
_AS_THEY_ARE = ("repetition_penalty", "no_repeat_ngram_size", "num_beams")


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of this command line, by their names in a JSONL file; those not given are absent."""
    given = {name: getattr(args, name) for name in NUMBERS if name != "seed" and getattr(args, name) is not None}
    given["stop"] = args.stop or []
    given["ignore_eos"] = args.ignore_eos
    return given


def check_greedy(args: argparse.Namespace) -> None:
    """Refuse --temperature 0 beside a filter, which would do nothing."""
    filters = [f"--{name.replace('_', '-')}" for name in FILTERS if getattr(args, name) is not None]
    if args.temperature == 0 and filters:
        raise UsageError(f"{', '.join(filters)}: no effect with --temperature 0, which takes the most probable token")


def check_template(tokenizer: Any, args: argparse.Namespace) -> None:
    """Refuse --chat where the checkpoint has no template, or none that is the default."""
    own = tokenizer.chat_template
    if args.chat and (own is None or (isinstance(own, dict) and "default" not in own)):
        has = "has no chat template" if own is None else f"none of its chat templates ({', '.join(own)}) is the default"
        raise ValueError(f"{args.model}: {has}; leave out --chat")


def encode(tokenizer: Any, prompt: str, *, chat: bool, system: str | None) -> tuple[str, list[int]]:
    """The text that the model reads, and its ids."""
    if not chat:
        return prompt, tokenizer.encode(prompt)
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text, tokenizer.encode(text, add_special_tokens=False)


def call_options(tokenizer: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What `generate` is to be told, but for the prompt, its seed and its length."""
    options = _sampling(given)
    options.update((name, given[name]) for name in _AS_THEY_ARE if name in given)
    options["tokenizer"] = tokenizer  # for stop_strings, which generation_config.json may have too
    if given["stop"]:
        options["stop_strings"] = given["stop"]
    if given["ignore_eos"]:
        options["eos_token_id"] = None
    return options


def _sampling(given: dict[str, Any]) -> dict[str, Any]:
    """Sample or not: --temperature says so; without it a filter means sampling; with neither the checkpoint says."""
    filters = {name: given[name] for name in FILTERS if name in given}
    temperature = given.get("temperature")
    if temperature == 0:
        return {"do_sample": False}
    if temperature is not None:
        return {"do_sample": True, "temperature": temperature, **filters}
    return {"do_sample": True, **filters} if filters else {}


def length_limit(model: Any, given: dict[str, Any], prompt_tokens: int) -> int:
    """How many tokens may follow a prompt.

    Raises:
        ValueError: the prompt fills the context, and no number of tokens was asked for.
    """
    in_file = model.generation_config.get("max_new_tokens")  # generate refuses what is no number, naming the file
    limit = given.get("max_new_tokens", in_file if type(in_file) is int and in_file > 0 else 128)
    context = model.config.max_position_embeddings
    limit = limit or context - prompt_tokens
    if limit < 1:
        raise ValueError(
            f"the prompt has {prompt_tokens} tokens and the context {context}: there is no room for text; give a "
            "shorter prompt, or -n to go past the context"
        )
    return int(limit)


def finish_reason(model: Any, transcript: Transcript, full: bool, given: dict[str, Any]) -> str:
    """Why a text ends: stop, eos or, where it has all the tokens that it may have, length."""
    if transcript.stopped:
        return "stop"
    ends = model.generation_config.get("eos_token_id")
    ends = model.config.eos_token_id if ends is None else ends
    ended = transcript.ids and transcript.ids[-1] in (ends if isinstance(ends, list) else [ends])
    if ended and not given["ignore_eos"]:
        return "eos"
    return "length" if full else "stop"


def fields(transcript: Transcript, seed: int, *, echo: str) -> dict[str, Any]:
    """What a line of JSON says about one text, the same for one prompt and for many."""
    return {
        "text": echo + transcript.text,
        "finish_reason": transcript.finish_reason,
        "prompt_tokens": transcript.prompt_tokens,
        "generated_tokens": len(transcript.ids),
        "seed": seed,
    }
