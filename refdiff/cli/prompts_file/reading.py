"""A file of prompts, one a line or JSONL, read as they come."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from refdiff.cli.answering import FILTERS, NUMBERS
from refdiff.cli.flags import MAX_PROMPT, UsageError
from refdiff.cli.loading import open_input
from refdiff.files import finite_float, unique_keys
from refdiff.messages import json_problem, json_type, show_name, show_value

_FIELDS = ("prompt", "text", "messages", "id", "system", "stop", "max_tokens", *NUMBERS)


@dataclass(frozen=True)
class Prompt:
    """One prompt of the file: its index, its text, and its own options.

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


class Prompts:
    """The prompts of a file, read line by line; empty lines do not count.

    A file is JSONL if its name ends in .jsonl or its first line is a JSON object.

    Attributes:
        repeatable: whether it can be read again; a pipe cannot.
        ignored: names of unknown fields read so far.
        samples, has_system: whether some prompt read so far has a temperature above 0, or a system message.

    Raises:
        UsageError: while it is iterated over, at a line that is not UTF-8, naming file and line; or no prompts at all.
    """

    def __init__(self, path: str, temperature: float | None = None) -> None:
        self.name = "standard input" if path == "-" else path
        self._json = path.endswith(".jsonl")
        self._temperature = temperature
        self._file = sys.stdin.buffer if path == "-" else open_input("--prompts-file", path)
        self.repeatable = self._file.seekable()
        self._start = self._file.tell() if self.repeatable else 0
        self.ignored: dict[str, None] = {}
        self.samples = self.has_system = False

    def __enter__(self) -> Prompts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()

    def __iter__(self) -> Iterator[Prompt]:
        if self.repeatable:
            self._file.seek(self._start)
        index = -1
        for index, (where, line) in enumerate(self._lines()):
            if index == 0:
                self._json = self._json or _is_object(line)
                if not self._json and _is_array(line):
                    raise UsageError(
                        f"{where}: got a JSON array, expected one object a line, as `jq -c '.[]'` writes them"
                    )
            try:
                prompt = self._parse_json(index, where, line) if self._json else Prompt(index, line, where=where)
            except UsageError as error:  # the other lines are still answered
                prompt = Prompt(index, "", problem=str(error), where=where)
            yield prompt
        if index < 0:
            raise UsageError(f"{self.name}: no prompts in it; give one a line")

    def _lines(self) -> Iterator[tuple[str, str]]:
        """Yield file and number, and the text, of each line that is not empty."""
        # Only a newline ends a line: U+2028 and the like are text, and JSON leaves them as they are.
        for number, raw in enumerate(iter(lambda: self._file.readline(MAX_PROMPT + 1), b""), 1):
            where = f"{self.name} line {number}"
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

    def _parse_json(self, index: int, where: str, line: str) -> Prompt:
        try:
            row = json.loads(
                line, parse_constant=_refuse_constant, parse_float=finite_float, object_pairs_hook=unique_keys
            )
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not JSON: {json_problem(error)}") from None
        if not isinstance(row, dict):
            raise UsageError(f'{where}: got {json_type(row)}, expected an object, {{"prompt": "..."}}')
        _check_characters(row, where)
        self.ignored.update(dict.fromkeys(key for key in row if key not in _FIELDS))
        row = {key: value for key, value in row.items() if value is not None}  # null: not given
        messages = _messages(row, where)
        text = row.get("prompt", row.get("text"))
        if messages is not None and text is not None:
            raise UsageError(f"{where}: got a prompt and messages, expected one of them")
        if messages is not None:
            text = json.dumps(messages, ensure_ascii=False, sort_keys=True)
        if not isinstance(text, str):
            got = "no prompt" if text is None else f"{json_type(text)} as prompt"
            raise UsageError(f'{where}: got {got}, expected a field "prompt" (or "text") that is a string')
        options = _options(row, where)
        self._check_greedy(options, where)
        self.samples = self.samples or bool(options.get("temperature"))
        self.has_system = self.has_system or "system" in options
        return Prompt(index, text, row.get("id"), options, messages, where=where)

    def _check_greedy(self, options: dict[str, Any], where: str) -> None:
        """Raise `UsageError` for a filter of the line that has no effect, as for the flags."""
        filters = [name for name in FILTERS if name in options]
        if filters and options.get("temperature", self._temperature) == 0:
            said, more = (
                ("temperature", "")
                if "temperature" in options
                else ("--temperature", "; give this prompt a temperature too")
            )
            raise UsageError(
                f"{where}: {', '.join(filters)}: no effect with {said} 0, which takes the most probable token{more}"
            )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line, parse_int=str), dict)
    except (ValueError, RecursionError):
        return False


def _is_array(line: str) -> bool:
    """Return whether a line is a JSON array of objects, or the beginning of one over several lines."""
    text = line.strip()
    return text == "[" or (text.startswith("[{") and text.endswith(("]", ",", "{")))


def _check_characters(row: dict[str, Any], where: str) -> None:
    """Raise `UsageError` for half a surrogate pair anywhere in a line: no file can have it."""
    for key, value in row.items():
        try:
            json.dumps({key: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"{where}: {show_name(key)}: has half a surrogate pair, such as \\ud800, which is not a character"
            ) from None


def _messages(row: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
    """Return the conversation of a line, checked, or None."""
    found = row.get("messages")
    if found is None:
        return None
    if not isinstance(found, list) or not found or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in found
    ):  # fmt: skip
        raise UsageError(
            f"{where}: messages: got {show_value(found)}, expected a list such as "
            '[{"role": "user", "content": "..."}]'
        )
    return found


def _options(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the options of a line, checked."""
    if "max_tokens" in row and "max_new_tokens" in row:
        raise UsageError(f"{where}: got max_tokens and max_new_tokens, expected one of them")
    options: dict[str, Any] = {}
    for key, value in row.items():
        name = "max_new_tokens" if key == "max_tokens" else key
        if name in NUMBERS:
            try:
                options[name] = NUMBERS[name].check(value)
            except argparse.ArgumentTypeError as error:
                raise UsageError(f"{where}: {key}: {error}") from None
    if "system" in row:
        if not isinstance(row["system"], str):
            raise UsageError(f"{where}: system: got {json.dumps(row['system'])}, expected a string")
        options["system"] = row["system"]
    if "stop" in row:
        stop = [row["stop"]] if isinstance(row["stop"], str) else row["stop"]
        if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
            got = json.dumps(row["stop"])
            raise UsageError(f"{where}: stop: got {got}, expected a string or a list of strings, none empty")
        options["stop"] = stop
    return options
