"""`refdiff generate`: a prompt, or a file of prompts → text."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from typing import Any

from refdiff.bench.device import peak_memory
from refdiff.cli import prompts_file
from refdiff.cli.completion import (
    call_options,
    check_greedy,
    check_template,
    encode,
    fields,
    finish_reason,
    given_options,
    length_limit,
)
from refdiff.cli.flags import UsageError
from refdiff.cli.loading import load
from refdiff.cli.prompt import check_prompt, read_prompt
from refdiff.cli.terminal import note, size
from refdiff.cli.transcript import Transcript


def run(args: argparse.Namespace) -> int:
    """Carry the command out and return the exit status."""
    _check_together(args)
    if args.prompts_file is not None:
        return prompts_file.run(args)
    prompt = read_prompt(args)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    model, tokenizer = load(args)
    check_template(tokenizer, args)
    text, ids = encode(tokenizer, prompt, chat=args.chat, system=args.system)
    streamed = not (args.no_stream or args.json)
    transcript = Transcript(tokenizer, args.stop or [], _write if streamed else None)
    if streamed and args.echo:
        _write(text)
    interrupted = _generate(model, tokenizer, ids, transcript, given_options(args), seed)
    if args.json:
        row = {"model": args.model, "prompt": prompt, **fields(transcript, seed, echo=text if args.echo else "")}
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
        for flag, value in (("-o", args.output), ("--dask", args.dask)):
            if value is not None:
                raise UsageError(f"{flag} goes with --prompts-file")
        for flag, number in (("--num-shards", args.num_shards), ("--batch-size", args.batch_size)):
            if number > 1:
                raise UsageError(f"{flag} goes with --prompts-file")
        check_greedy(args)
    for flag, used in (("--json", args.json), ("--no-stream", args.no_stream)):
        if used and args.prompts_file is not None:
            raise UsageError(f"{flag} is for one prompt; --prompts-file writes lines of JSON as it is")
    if "" in (args.stop or []):
        raise UsageError("--stop is empty; give the text to stop before")


def _generate(
    model: Any, tokenizer: Any, ids: list[int], transcript: Transcript, given: dict[str, Any], seed: int
) -> bool:
    """Generate into the transcript; whether Ctrl-C ended it. What was generated until then is kept."""
    limit = length_limit(model, given, len(ids))
    try:
        rows = model.generate(
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
        return True
    transcript.close(finish_reason(model, transcript, len(rows[0]) - len(ids) >= limit, given))
    return False


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
