"""`refdiff generate --chat` on a terminal: a conversation."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import secrets
import sys
from collections.abc import Iterator
from typing import Any

from refdiff import bundled
from refdiff.cli.answering import check_length, check_template, encode, generate_into, given_options
from refdiff.cli.flags import UsageError
from refdiff.cli.loading import load
from refdiff.cli.output_files import check_place
from refdiff.cli.terminal import note, one_line, text_writer
from refdiff.cli.transcript import Transcript
from refdiff.files import expand_home, write_atomically

HELP = "Ctrl-C stops an answer; /reset starts anew, /save FILE writes all, /bye ends"
ENDING = ("/bye", "/quit", "/exit")
RESERVED = 4
"""Without -n, one in this many tokens of the context is reserved for the answer."""


def converse(args: argparse.Namespace) -> int:
    """Read messages and answer them until the input ends."""
    model, tokenizer = load(args)
    check_template(tokenizer, args)
    check_length(model, given_options(args))
    first = [] if args.system is None else [{"role": "system", "content": args.system}]
    messages, said = list(first), list(first)  # what fits into the context, and all
    if not args.quiet:
        note(HELP)
        if args.model == bundled.NAME:
            note("the bundled model has learned only tales: begin one, and continue it in turns")
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # with which `input` edits a line and brings back earlier ones
    while (line := _read()) is not None:
        command, _, rest = line.strip().partition(" ")
        if command in ENDING:
            break
        if command in ("/help", "/?"):
            note(HELP)
        elif command == "/reset":
            messages, said = list(first), list(first)
        elif command == "/save":
            _save(rest.strip(), said, len(first))
        elif command.startswith("/"):
            note(f"refdiff: {command}: unknown command; there are /help, /reset, /save FILE, /bye")
        elif command:
            messages.append({"role": "user", "content": line})
            if _answer(args, model, tokenizer, messages, len(first)):
                said += messages[-2:]
    return 0


def _read() -> str | None:
    """Return a line of input, or None at its end; Ctrl-C clears the line."""
    while True:
        try:
            return input("> ")
        except KeyboardInterrupt:
            note("")
        except EOFError:
            note("")
            return None


@contextlib.contextmanager
def _silent_keyboard() -> Iterator[None]:
    """Keep what is typed off the terminal, where it would stand in the answer: the next prompt reads it."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _save(name: str, messages: list[dict[str, Any]], first: int) -> None:
    try:
        if not name:
            raise ValueError("/save: got no name, expected a file; give one, /save chat.json")
        if len(messages) == first:
            raise ValueError("/save: nothing has been said yet")
        path = expand_home(name)
        check_place("/save", path)
        write_atomically(path, (json.dumps(messages, ensure_ascii=False, indent=2) + "\n").encode())
    except (OSError, ValueError) as error:
        note(f"refdiff: {one_line(error)}")
    else:
        note(f"{len(messages)} messages written to {path}")


def _answer(args: argparse.Namespace, model: Any, tokenizer: Any, messages: list[dict[str, Any]], first: int) -> bool:
    """Answer the last message, append the answer and return True; after an error, remove the message."""
    given = given_options(args)
    try:
        ids = _fitting(model, tokenizer, messages, first, given)
        write = text_writer()
        transcript = Transcript(tokenizer, given["stop"], write)
        seed = secrets.randbits(32) if args.seed is None else args.seed + len(messages)
        with _silent_keyboard(), transcript.progress_shown(quiet=args.quiet):
            generate_into(transcript, model, tokenizer, ids, given, seed)
    except (ValueError, FloatingPointError) as error:
        note(f"refdiff: {one_line(error)}")
        del messages[-1]
        return False
    write("\n")
    messages.append({"role": "assistant", "content": transcript.text})
    return True


def _fitting(
    model: Any, tokenizer: Any, messages: list[dict[str, Any]], first: int, given: dict[str, Any]
) -> list[int]:
    """Return the ids of the messages, after dropping the oldest ones until the rest fits the context."""
    context = model.config.max_position_embeddings
    reserved = given.get("max_new_tokens") or max(context // RESERVED, 1)
    dropped = 0
    while True:
        kept = [*messages[:first], *messages[first + dropped :]]
        is_last = len(kept) - first < 3
        try:
            _, ids = encode(model, tokenizer, "", kept)
            if len(ids) + reserved <= context or is_last:
                break
        except ValueError as error:  # far longer than the context, as after an answer with a large -n
            if is_last or isinstance(error, UsageError):
                raise
        dropped += 2
    if dropped:
        del messages[first : first + dropped]
        note(f"refdiff: the context is full; {dropped} messages from the beginning are forgotten")
    return ids
