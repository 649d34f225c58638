"""`refdiff generate`: a prompt, a conversation, or a file of prompts → text."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.cli import answering, flags
from refdiff.cli.answering import NUMBERS
from refdiff.cli.flags import Number, UsageError, refuse, utf8_text
from refdiff.cli.loading import check_prompt, load, read_prompt
from refdiff.cli.output_files import check_place
from refdiff.cli.parser import Parser
from refdiff.cli.terminal import json_text, note, size, text_writer, waiting, write_text
from refdiff.files import write_atomically
from refdiff.memory import peak_memory

if TYPE_CHECKING:
    from refdiff.cli.transcript import Transcript


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Continue a prompt. The text goes to standard output as it comes; everything else goes to standard error."
    )
    parser.examples = """
refdiff generate "Once upon a time"
refdiff generate -m path/to/checkpoint -n 50 "Once upon a time"
refdiff generate -m path/to/checkpoint --chat
refdiff generate -m path/to/checkpoint --prompts-file in.jsonl -o out.jsonl
"""
    parser.brief = ("-m", "-f", "--chat", "--system", "-n", "--temperature", "--top-k", "--top-p", "-s", "--stop")
    parser.brief += ("--json", "-o", "-q", "--prompts-file", "--batch-size", "--backend", "--dtype")
    prompt = parser.add_argument_group("model and prompt")
    flags.add_model(prompt, "-m", "--model")
    flags.add_prompt(prompt)
    prompt.add_argument("--chat", action="store_true", help="use the chat template, or converse")
    prompt.add_argument("--system", type=utf8_text, metavar="TEXT", help="the system message, with --chat")
    _add_sampling(parser, parser.add_argument_group("choice of tokens"))
    output = parser.add_argument_group("output")
    output.add_argument("--echo", action="store_true", help="print the prompt before the text")
    output.add_argument("--no-stream", action="store_true", help="print the text when it is complete")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument("-o", "--output", metavar="FILE", help="write to FILE (default: standard output)")
    many = parser.add_argument_group("many prompts")
    many.add_argument("--prompts-file", metavar="FILE", help="one prompt a line, or JSONL")
    one = Number(int, 1, off="1 = off")
    many.add_argument("--batch-size", type=one, default=1, metavar="N", help="prompts in one pass of the model")
    machine = parser.add_argument_group("machine")
    flags.add_machine(machine)
    flags.add_common(machine)
    parser.notes = [
        flags.PIPE_NOTE,
        "FILE of -o is replaced when the text is complete; an error or Ctrl-C leaves it as it was.",
        "What the checkpoint's generation_config.json sets is the default of the options above. With --top-k, --top-p "
        "or --min-p the default of --temperature is 1. The default of --repetition-penalty is "
        f"{answering.BUNDLED_PENALTY} for the bundled model, which repeats itself without; with --chat, "
        "--no-repeat-ngram-size is 4 for it.",
        "A line of JSONL has prompt (or text, or messages with role and content), and may have id, system and seed. "
        "Each answer is one line of JSON. A prompt that has its answer in FILE of -o is skipped, so the same command "
        "resumes a run.",
        "--batch-size changes a text only where two tokens are equally probable up to rounding error. "
        "Prompt I has the seed SEED + I, or its own; without --seed, SEED is 0.",
        "A conversation (--chat on a terminal, without PROMPT) keeps as much history as the context holds. Ctrl-C "
        "stops one answer, Ctrl-D or /bye ends, /help lists; /reset forgets, /save FILE writes the messages as JSON.",
        "--weights stored keeps matrices of 16 bits as they are, whatever --dtype is: half the memory and, on a CPU, "
        "less speed; auto = stored with cupy, expanded to float32 with numpy.",
    ]


def _add_sampling(parser: Parser, group: argparse._ArgumentGroup) -> None:
    def number(name: str, metavar: str, *spellings: str, text: str) -> argparse.Action:
        return group.add_argument(*spellings, dest=name, type=NUMBERS[name], metavar=metavar, help=text)

    length = number("max_new_tokens", "N", "-n", "--max-new-tokens", text="0 = up to the context length (default: 128)")
    temperature = number("temperature", "T", "--temperature", text="randomness, 0 = greedy (default: 0)")
    parser.add_alias(length, "--max-tokens")
    parser.add_alias(temperature, "--temp")
    number("top_k", "K", "--top-k", text="keep the K most probable, 0 = off (default: 50)")
    number("top_p", "P", "--top-p", text="keep the top probability P, 1 = off (default: 1)")
    number("min_p", "P", "--min-p", text="drop below P × the largest, 0 = off (default: 0)")
    number("repetition_penalty", "X", "--repetition-penalty", text="divide scores of used tokens, 1 = off (default: 1)")
    number("no_repeat_ngram_size", "N", "--no-repeat-ngram-size", text="never repeat N tokens, 0 = off (default: 0)")
    number("num_beams", "N", "--num-beams", text="beam search with N beams, 1 = off (default: 1)")
    number("seed", "SEED", "-s", "--seed", text="makes sampling repeatable (default: random)")
    group.add_argument("--stop", action="append", type=utf8_text, metavar="TEXT", help="end before TEXT; repeatable")
    group.add_argument("--ignore-eos", action="store_true", help="continue after the end token")


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    alone = args.prompt is None and args.prompt_flag is None and args.file is None and args.prompts_file is None
    _check_flags(args)
    to_stdout = args.output in (None, "-")
    if not to_stdout and args.output != os.devnull:
        check_place("-o", Path(args.output))
    if args.prompts_file is not None:
        from refdiff.cli.prompts_file.run import answer_file

        return answer_file(args)
    if args.chat and alone and sys.stdin.isatty():
        from refdiff.cli.conversation import converse

        refuse(
            "only for one prompt, a conversation has many; give PROMPT, or leave {} out",
            {"--json": args.json, "--echo": args.echo, "--no-stream": args.no_stream, "-o": not to_stdout},
        )
        return converse(args)
    check_prompt(args)
    prompt = read_prompt(args)
    pieces: list[str] = []
    show = write_text if args.json else text_writer()
    transcript, seed = _answer(args, prompt, show if to_stdout else pieces.append)
    interrupted = transcript.finish_reason == "interrupted"
    if not to_stdout and interrupted:
        note(f"refdiff: {args.output} is not written; the text so far goes to standard output")
        show("".join(pieces))
    elif not to_stdout and args.output != os.devnull:
        write_atomically(args.output, "".join(pieces).encode())
    if not args.quiet:
        _show(transcript, seed)
    if interrupted:
        raise KeyboardInterrupt
    return 0


def _check_flags(args: argparse.Namespace) -> None:
    """Raise `UsageError` for options that contradict each other or have no effect."""
    if args.prompts_file is not None:
        check_prompt(args, {"--prompts-file": args.prompts_file})
    if args.system is not None and not args.chat:
        raise UsageError("--system: has a place in a chat template only; add --chat")
    if args.prompts_file is None:
        many = {"--batch-size": args.batch_size > 1}
        refuse("no effect without --prompts-file; add that, or leave {} out", many)
    else:
        one = {"--json": args.json, "--no-stream": args.no_stream}
        refuse("only for one prompt; --prompts-file always writes lines of JSON", one)
    answering.check_greedy(args)
    if "" in (args.stop or []):
        raise UsageError("--stop: got nothing, expected the text to stop before")


def _answer(args: argparse.Namespace, prompt: str, write: Callable[[str], None]) -> tuple[Transcript, int | None]:
    """Answer one prompt; return the transcript, and the seed if random numbers were drawn."""
    from refdiff.cli.transcript import Transcript
    from refdiff.generation.options import resolve

    seed = secrets.randbits(32) if args.seed is None else args.seed
    model, tokenizer = load(args)
    answering.check_template(tokenizer, args)
    messages = answering.chat_messages(prompt, args.system) if args.chat else None
    with waiting("tokenizing the prompt", quiet=args.quiet):
        text, ids = answering.encode(model, tokenizer, prompt, messages)
    typed = answering.given_options(args)
    answering.check_length(model, typed)
    options = resolve(model, answering.call_options(tokenizer, typed))
    used = seed if options.do_sample else None
    if used is None and args.seed is not None:
        note("refdiff: warning: --seed: no effect on a greedy text; add --temperature 0.7, or leave it out")
    to_terminal = args.output in (None, "-") and sys.stdout.isatty()
    streamed = not (args.no_stream or args.json)
    if streamed and args.echo:
        write(text)
    transcript = Transcript(tokenizer, typed["stop"], write if streamed else None)
    quiet = args.quiet or (args.echo and streamed and to_terminal)
    with transcript.progress_shown(quiet=quiet, until_text=streamed and to_terminal):
        answering.generate_into(transcript, model, tokenizer, ids, typed, seed)
    if args.json:
        shown = used if args.seed is None else seed
        row = {
            "model": args.model,
            "prompt": prompt,
            **answering.result_fields(transcript, shown, echo=text if args.echo else ""),
            "prompt_tokens_per_second": transcript.prompt_speed,
            "generated_tokens_per_second": transcript.speed,
            "peak_memory_bytes": peak_memory(),
        }
        write(json_text(row) + "\n")
    elif streamed:
        write("\n")
    else:
        write((text if args.echo else "") + transcript.text + "\n")
    return transcript, used


def _show(transcript: Transcript, seed: int | None) -> None:
    """Print the statistics on standard error."""

    def line(name: str, tokens: int, speed: float | None) -> str:
        return f"{name:<10}{tokens:>6} tokens" + ("" if speed is None else f"{speed:>10.1f} tok/s")

    memory = peak_memory()
    note("")
    note(line("prompt", transcript.prompt_tokens, transcript.prompt_speed))
    note(line("generated", len(transcript.ids), transcript.speed))
    note(
        f"finish: {transcript.finish_reason}"
        + ("" if seed is None else f"; seed: {seed}")
        + ("" if memory is None else f"; peak memory: {size(memory)}")
    )
