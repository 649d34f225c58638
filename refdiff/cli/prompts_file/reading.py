"""A file of prompts, one a line or JSONL."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from refdiff.cli.answering import NUMBERS
from refdiff.cli.flags import MAX_PROMPT, UsageError
from refdiff.cli.loading import open_input
from refdiff.cli.terminal import note
from refdiff.files import finite_float, unique_keys
from refdiff.messages import json_problem, json_type, show_value

_FIELDS = ("prompt", "text", "messages", "id", "system", "seed")
_FOR_ALL = {*NUMBERS, "max_tokens", "stop"} - {"seed"}


@dataclass(frozen=True)
class Prompt:
    """One prompt of the file: its index, its text, and its own seed and system message.

    A conversation has `messages`, and `text` is their JSON. A line that is no prompt has a `problem`. `where` names
    file and line.
    """

    index: int
    text: str
    id: object = None
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] | None = None
    problem: str | None = None
    where: str = field(default="", compare=False)


def read_prompts(path: str) -> list[Prompt]:
    """Return the prompts of a file; empty lines do not count. A line that is no prompt costs no other.

    A file is JSONL if its name ends in .jsonl or its first line is a JSON object.

    Raises:
        UsageError: a line is not UTF-8 or too long, naming file and line; or there is no prompt at all.
    """
    name = "standard input" if path == "-" else path
    prompts: list[Prompt] = []
    ignored: dict[str, None] = {}
    is_json = path.endswith(".jsonl")
    with nullcontext(sys.stdin.buffer) if path == "-" else open_input("--prompts-file", path) as file:
        for index, (where, line) in enumerate(_lines(file, name)):
            if index == 0 and not is_json:
                is_json = _is_object(line)
                if line.strip() == "[" or line.strip().startswith("[{"):
                    raise UsageError(
                        f"{where}: got a JSON array, expected one object a line, as `jq -c '.[]'` writes them"
                    )
            try:
                prompt = (
                    _parse(len(prompts), where, line, ignored) if is_json else Prompt(len(prompts), line, where=where)
                )
            except UsageError as error:
                prompt = Prompt(len(prompts), "", problem=str(error), where=where)
            prompts.append(prompt)
    if not prompts:
        raise UsageError(f"{name}: no prompts in it; give one a line")
    if ignored:
        note(f"refdiff: warning: {name}: unknown fields are ignored: {', '.join(ignored)}")
    return prompts


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """Yield file and number, and the text, of each line that is not empty."""
    # Only a newline ends a line: U+2028 and the like are text, and JSON leaves them as they are.
    for number, raw in enumerate(iter(lambda: file.readline(MAX_PROMPT + 1), b""), 1):
        where = f"{name} line {number}"
        if len(raw) > MAX_PROMPT:
            raise UsageError(
                f"{where}: longer than {MAX_PROMPT:,} bytes, the most that a prompt may have; is it a file of "
                "prompts, one a line?"
            )
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise UsageError(f"{where}: not UTF-8; convert the file, for instance with iconv") from None
        if line.strip():
            yield where, line


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line, parse_int=str), dict)
    except (ValueError, RecursionError):
        return False


def _parse(index: int, where: str, line: str, ignored: dict[str, None]) -> Prompt:
    """Return the prompt of a line of JSONL, and note its unknown fields."""
    try:
        row = json.loads(line, parse_constant=_refuse_constant, parse_float=finite_float, object_pairs_hook=unique_keys)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where}: has half a surrogate pair, such as \\ud800, which is not a character") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {json_problem(error)}") from None
    if not isinstance(row, dict):
        raise UsageError(f'{where}: got {json_type(row)}, expected an object, {{"prompt": "..."}}')
    ignored.update(dict.fromkeys(key for key in row if key not in _FIELDS))
    row = {key: value for key, value in row.items() if value is not None}  # null: not given
    for pair in (("prompt", "messages"), ("text", "messages")):
        if row.keys() >= {*pair}:
            raise UsageError(f"{where}: got {' and '.join(pair)}, expected one of them")
    messages = _messages(row, where)
    text = row.get("prompt", row.get("text"))
    if messages is not None:
        text = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    if not isinstance(text, str):
        got = "no prompt" if text is None else f"{json_type(text)} as prompt"
        raise UsageError(f'{where}: got {got}, expected a field "prompt" (or "text") that is a string')
    return Prompt(index, text, row.get("id"), _options(row, where), messages, where=where)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _messages(row: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
    """Return the conversation of a line, checked, or None."""
    messages = row.get("messages")
    if messages is None:
        return None
    if not isinstance(messages, list) or not messages or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    ):  # fmt: skip
        raise UsageError(
            f"{where}: messages: got {show_value(messages)}, expected a list such as "
            '[{"role": "user", "content": "..."}]'
        )
    return messages


def _options(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the seed and the system message of a line, checked."""
    options: dict[str, Any] = {}
    if name := next((key for key in row if key in _FOR_ALL), None):
        raise UsageError(f"{where}: {name}: got a field, expected an option of the command, for all prompts")
    if "seed" in row:
        try:
            options["seed"] = NUMBERS["seed"].check(row["seed"])
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{where}: seed: {error}") from None
    if "system" in row:
        if not isinstance(row["system"], str):
            raise UsageError(f"{where}: system: got {json.dumps(row['system'])}, expected a string")
        options["system"] = row["system"]
    return options
