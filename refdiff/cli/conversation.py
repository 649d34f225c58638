"""`refdiff generate --chat` on a terminal: a conversation."""

from __future__ import annotations

import argparse
import json
import secrets
from pathlib import Path
from typing import Any

from refdiff.cli.answering import chat_messages, check_template, encode, given_options
from refdiff.cli.generate import generate_into
from refdiff.cli.loading import load
from refdiff.cli.output_files import check_place
from refdiff.cli.terminal import note, one_line, write_text
from refdiff.cli.transcript import Transcript
from refdiff.files import write_atomically

HELP = "Ctrl-C stops an answer, Ctrl-D ends; /reset forgets what was said, /save FILE writes it as JSON"
RESERVED = 4
"""An answer that was not limited has at least one in this many tokens of the context to itself."""


def converse(args: argparse.Namespace) -> int:
    """Read messages and answer them until the input ends."""
    model, tokenizer = load(args)
    check_template(tokenizer, args)
    first = chat_messages("", args.system)[:-1]
    messages = list(first)
    if not args.quiet:
        note(HELP)
    while (line := _read()) is not None:
        if line == "/reset":
            messages = list(first)
        elif line.split(maxsplit=1)[:1] == ["/save"]:
            _save(line, messages)
        elif line.startswith("/"):
            note(HELP)
        elif line.strip():
            messages.append({"role": "user", "content": line})
            _answer(args, model, tokenizer, messages, len(first))
    return 0


def _read() -> str | None:
    """One line, or None when the input ends; Ctrl-C starts the line anew."""
    while True:
        try:
            return input("> ")
        except KeyboardInterrupt:
            note("")
        except EOFError:
            note("")
            return None


def _save(line: str, messages: list[dict[str, Any]]) -> None:
    _, _, name = line.partition(" ")
    try:
        if not name.strip():
            raise ValueError("/save: got no name, expected a file; give one, /save chat.json")
        path = Path(name.strip()).expanduser()
        check_place("/save", path)
        write_atomically(path, (json.dumps(messages, ensure_ascii=False, indent=2) + "\n").encode())
    except (OSError, ValueError) as error:
        note(f"refdiff: {one_line(error)}")
    else:
        note(f"{len(messages)} messages written to {path}")


def _answer(args: argparse.Namespace, model: Any, tokenizer: Any, messages: list[dict[str, Any]], first: int) -> None:
    """Answer the last message, and add the answer; without one the message is taken back."""
    given = given_options(args)
    try:
        ids = _fitting(model, tokenizer, messages, first, given)
        transcript = Transcript(tokenizer, given["stop"], write_text)
        seed = secrets.randbits(32) if args.seed is None else args.seed + len(messages)
        with transcript.progress_shown(quiet=args.quiet):
            generate_into(transcript, model, tokenizer, ids, given, seed)
    except (ValueError, FloatingPointError) as error:
        note(f"refdiff: {one_line(error)}")
        del messages[-1]
        return
    write_text("\n")
    messages.append({"role": "assistant", "content": transcript.text})


def _fitting(
    model: Any, tokenizer: Any, messages: list[dict[str, Any]], first: int, given: dict[str, Any]
) -> list[int]:
    """The ids of the messages, of which the oldest exchanges are dropped until the rest fits into the context."""
    context = model.config.max_position_embeddings
    room = given.get("max_new_tokens") or max(context // RESERVED, 1)
    dropped = 0
    while True:
        _, ids = encode(tokenizer, "", messages)
        if len(ids) + room <= context or len(messages) - first < 3:
            break
        del messages[first : first + 2]
        dropped += 2
    if dropped:
        note(f"refdiff: the context is full; {dropped} messages from the beginning are forgotten")
    return ids
