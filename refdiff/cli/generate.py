"""`refdiff generate`: a prompt, or a file of prompts → text."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from typing import Any

from refdiff.bench.memory import peak_memory
from refdiff.cli import prompts_file
from refdiff.cli.flags import UsageError
from refdiff.cli.generate_flags import NUMBERS
from refdiff.cli.loading import load
from refdiff.cli.prompt import check_prompt, read_prompt
from refdiff.cli.terminal import note, size
from refdiff.cli.transcript import Transcript

_AS_THEY_ARE = ("repetition_penalty", "no_repeat_ngram_size", "num_beams")
_FILTERS = ("top_k", "top_p", "min_p")


def run(args: argparse.Namespace) -> int:
    """Carry the command out and return the exit status."""
    _check_together(args)
    if args.prompts_file is not None:
        prompts = prompts_file.read_prompts(args.prompts_file)
        _check_with_prompts(args, prompts)
        return prompts_file.run(prompts, args, _given(args), lambda: _completer(args))
    prompt = read_prompt(args)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    model, tokenizer = load(args)
    _check_template(tokenizer, args)
    text, ids = _encode(tokenizer, prompt, chat=args.chat, system=args.system)
    streamed = not (args.no_stream or args.json)
    transcript = Transcript(tokenizer, args.stop or [], _write if streamed else None)
    if streamed and args.echo:
        _write(text)
    interrupted = _generate(model, tokenizer, ids, transcript, _given(args), seed)
    if args.json:
        row = {"model": args.model, "prompt": prompt, **_fields(transcript, seed, echo=text if args.echo else "")}
        _write(json.dumps({**row, **_statistics(transcript)}, ensure_ascii=False) + "\n")
    elif streamed:
        _write("\n")
    else:
        _write((text if args.echo else "") + transcript.text + "\n")
    if not args.quiet:
        _show(transcript, seed)
    if interrupted:
        raise KeyboardInterrupt
    return 0


def _check_together(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, or that would do nothing."""
    check_prompt(args, {"--prompts-file": args.prompts_file})
    if args.system is not None and not args.chat:
        raise UsageError("--system has a place in a chat template only; add --chat")
    if args.shard_index >= args.num_shards:
        raise UsageError(
            f"--shard-index is {args.shard_index}, but with --num-shards {args.num_shards} it must be from 0 to "
            f"{args.num_shards - 1}"
        )
    if args.prompts_file is None:
        for flag, used in (("-o", args.output is not None), ("--num-shards", args.num_shards > 1)):
            if used:
                raise UsageError(f"{flag} goes with --prompts-file")
        _check_greedy(args)
    for flag, used in (("--json", args.json), ("--no-stream", args.no_stream)):
        if used and args.prompts_file is not None:
            raise UsageError(f"{flag} is for one prompt; --prompts-file writes lines of JSON as it is")
    if "" in (args.stop or []):
        raise UsageError("--stop is empty; give the text to stop before")


def _check_greedy(args: argparse.Namespace) -> None:
    filters = [f"--{name.replace('_', '-')}" for name in _FILTERS if getattr(args, name) is not None]
    if args.temperature == 0 and filters:
        raise UsageError(f"{', '.join(filters)}: no effect with --temperature 0, which takes the most probable token")


def _check_with_prompts(args: argparse.Namespace, prompts: list[prompts_file.Prompt]) -> None:
    """Refuse a flag, and name a field, that would do nothing for any of the prompts."""
    if not any(prompt.options.get("temperature") for prompt in prompts):
        _check_greedy(args)
    if not args.chat and any("system" in prompt.options for prompt in prompts):
        note(f"refdiff: warning: {args.prompts_file}: system has a place in a chat template only, ignored; add --chat")


def _check_template(tokenizer: Any, args: argparse.Namespace) -> None:
    """Refuse --chat where the checkpoint has no template, or none that is the default."""
    own = tokenizer.chat_template
    if args.chat and (own is None or (isinstance(own, dict) and "default" not in own)):
        has = "has no chat template" if own is None else f"none of its chat templates ({', '.join(own)}) is the default"
        raise ValueError(f"{args.model}: {has}; leave out --chat")


def _encode(tokenizer: Any, prompt: str, *, chat: bool, system: str | None) -> tuple[str, list[int]]:
    """The text that the model reads, and its ids."""
    if not chat:
        return prompt, tokenizer.encode(prompt)
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text, tokenizer.encode(text, add_special_tokens=False)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The options of this command line, by their names in a JSONL file; those not given are absent."""
    given = {name: getattr(args, name) for name in NUMBERS if name != "seed" and getattr(args, name) is not None}
    given["stop"] = args.stop or []
    given["ignore_eos"] = args.ignore_eos
    return given


def _generate(
    model: Any, tokenizer: Any, ids: list[int], transcript: Transcript, given: dict[str, Any], seed: int
) -> bool:
    """Generate into the transcript; whether Ctrl-C ended it. What was generated until then is kept."""
    options = _sampling(given)
    options.update((name, given[name]) for name in _AS_THEY_ARE if name in given)
    in_file = model.generation_config.get("max_new_tokens")  # generate refuses what is no number, naming the file
    limit = given.get("max_new_tokens", in_file if type(in_file) is int and in_file > 0 else 128)
    limit = limit or model.config.max_position_embeddings - len(ids)
    if limit < 1:
        raise ValueError(
            f"the prompt has {len(ids)} tokens and the context {model.config.max_position_embeddings}: there is no "
            "room for text; give a shorter prompt, or -n to go past the context"
        )
    if given["stop"]:
        options.update(stop_strings=given["stop"], tokenizer=tokenizer)
    if given["ignore_eos"]:
        options["eos_token_id"] = None
    try:
        rows = model.generate(
            [ids],
            streamer=transcript,
            seed=seed,
            max_new_tokens=limit,
            num_return_sequences=1,
            return_dict_in_generate=False,
            **options,
        )
    except KeyboardInterrupt:
        transcript.close("interrupted")
        return True
    transcript.close(_finish_reason(model, transcript, len(rows[0]) - len(ids) >= limit, given))
    return False


def _sampling(given: dict[str, Any]) -> dict[str, Any]:
    """Sample or not: --temperature says so; without it a filter means sampling; with neither the checkpoint says."""
    filters = {name: given[name] for name in _FILTERS if name in given}
    temperature = given.get("temperature")
    if temperature == 0:
        return {"do_sample": False}
    if temperature is not None:
        return {"do_sample": True, "temperature": temperature, **filters}
    return {"do_sample": True, **filters} if filters else {}


def _finish_reason(model: Any, transcript: Transcript, full: bool, given: dict[str, Any]) -> str:
    if transcript.stopped:
        return "stop"
    ends = model.generation_config.get("eos_token_id")
    ends = model.config.eos_token_id if ends is None else ends
    ended = transcript.ids and transcript.ids[-1] in (ends if isinstance(ends, list) else [ends])
    if ended and not given["ignore_eos"]:
        return "eos"
    return "length" if full else "stop"


def _completer(args: argparse.Namespace) -> Any:
    """Load the model once → a function that answers one prompt of a file."""
    model, tokenizer = load(args)
    _check_template(tokenizer, args)
    common = _given(args)

    def complete(prompt: prompts_file.Prompt, seed: int) -> dict[str, Any]:
        given = {**common, **prompt.options}
        system = given.get("system", args.system)
        text, ids = _encode(tokenizer, prompt.text, chat=args.chat, system=system)
        transcript = Transcript(tokenizer, given["stop"], None)
        if _generate(model, tokenizer, ids, transcript, given, seed):
            raise KeyboardInterrupt
        return _fields(transcript, seed, echo=text if args.echo else "")

    return complete


def _fields(transcript: Transcript, seed: int, *, echo: str) -> dict[str, Any]:
    """What a line of JSON says about one text, the same for one prompt and for many."""
    return {
        "text": echo + transcript.text,
        "finish_reason": transcript.finish_reason,
        "prompt_tokens": transcript.prompt_tokens,
        "generated_tokens": len(transcript.ids),
        "seed": seed,
    }


def _statistics(transcript: Transcript) -> dict[str, Any]:
    return {
        "prompt_tokens_per_second": transcript.prompt_speed,
        "generated_tokens_per_second": transcript.speed,
        "peak_memory_bytes": peak_memory(),
    }


def _show(transcript: Transcript, seed: int) -> None:
    """The statistics for people, on standard error."""

    def line(name: str, tokens: int, speed: float | None) -> str:
        return f"{name:<10}{tokens:>6} tokens" + ("" if speed is None else f"{speed:>10.1f} tok/s")

    memory = peak_memory()
    note("")
    note(line("prompt", transcript.prompt_tokens, transcript.prompt_speed))
    note(line("generated", len(transcript.ids), transcript.speed))
    note(
        f"finish: {transcript.finish_reason}; seed: {seed}"
        + ("" if memory is None else f"; peak memory: {size(memory)}")
    )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
