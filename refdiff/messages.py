"""Format values, names and messages for display: short, and without characters that control a terminal."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep  # noqa: PTH100, PTH120, pathlib is not loaded with this

MAX_MESSAGE = 2000
"""The most characters of a message."""


NATIVE_CALLS: ContextVar[Callable[[], AbstractContextManager[None]]] = ContextVar("NATIVE_CALLS", default=nullcontext)
"""A context manager around each call into the tokenizers library; commands use it to hide what a panic prints."""


def printable(text: object, limit: int = MAX_MESSAGE) -> str:
    """Return `text` with control characters escaped, and its middle cut out if it exceeds `limit` characters.

    Also escaped are bidirectional marks, half surrogate pairs and unassigned characters; letters of any
    script, spaces, line breaks and tabs stay.
    """
    shown = _cut(str(text), limit)
    if not shown.isprintable():
        shown = _cut("".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in shown), limit)
    return shown


def list_problems(problems: Sequence[str]) -> str:
    """Return one problem as it is, or several as lines: at most 20, and no more than fit into a message."""
    if len(problems) == 1:
        return problems[0]
    capacity, length = 3 * MAX_MESSAGE // 4, 0  # the rest is for the name of the file
    shown: list[str] = []
    for problem in problems[:20]:
        line = f"  {_cut(problem, capacity - 2)}"
        length += len(line)
        if length > capacity:
            break
        shown.append(line)
    lines = [f"{len(problems)} problems:", *shown]
    if len(problems) > len(shown):
        lines.append(f"  and {len(problems) - len(shown)} more")
    return "\n".join(lines)


def did_you_mean(
    name: object,
    known: Iterable[str],
    before: str = "; ",
    otherwise: str = "",
    *,
    show: Callable[[str], str] = repr,
    most: int = 1,
    cutoff: float = 0.6,
) -> str:
    """Return `before` and a question that suggests the known names closest to `name`; `otherwise` if none is close.

    At most `most` names are suggested, of a similarity of at least `cutoff`, as in `difflib.get_close_matches`.
    """
    import difflib  # only errors need it, and it takes a millisecond

    near = difflib.get_close_matches(str(name), list(known), most, cutoff)
    return f"{before}did you mean {', '.join(map(show, near))}?" if near else otherwise


def refuse_arguments(call: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `TypeError` if `given` has a name. The message has the first one, and the arguments that are known."""
    for name in given:
        known = list(known)
        hint = did_you_mean(name, known, otherwise="; leave it out", show=str, cutoff=0.8)
        raise TypeError(f"{call}: got an unexpected argument {name!r}, expected any of {', '.join(known)}{hint}")


def warn(message: str) -> None:
    """Warn with the location of the line that called this package, however deep the call stack is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def summary(result: Any, fields: Mapping[str, Any]) -> str:
    """Represent a result by the names, shapes and types of its arrays."""
    return f"{type(result).__name__}({', '.join(f'{name}={_form(value)}' for name, value in fields.items())})"


def _form(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple) and value:
        return f"{len(value)} × {_form(value[0])}"
    if hasattr(value, "__len__"):
        return f"{type(value).__name__} of {len(value)} tokens"
    return type(value).__name__


def _cut(text: str, limit: int) -> str:
    tail = limit // 4  # the fix stands at the end of a message
    return text if len(text) <= limit else f"{text[: limit - tail - 3]} … {text[-tail:]}"


def json_type(value: Any) -> str:
    """Name the JSON type of a parsed value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def json_problem(error: Exception) -> str:
    """Say why a text is not JSON, without Python's advice to programmers."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "an integer of more than 4,300 digits" if "set_int_max_str_digits" in str(error) else str(error)


def show_name(name: str) -> str:
    """Show the name of a field: as it is if it is a plain word, or else quoted, escaped and cut short."""
    return name if name.isascii() and name.isidentifier() and len(name) <= 80 else ascii(name[:80])


def show_value(value: Any) -> str:
    """Show a value of any size in at most 80 characters."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**40:
        return "an integer above 10^40" if value > 0 else "an integer below -10^40"
    try:
        text = ascii(value[:100] if isinstance(value, str | list | tuple) else value)
    except ValueError:  # Python refuses to print integers of thousands of digits, such as those inside a list
        return f"{json_type(value)} with an integer of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def show_typed(value: Any) -> str:
    """Show a value with its JSON type; null alone, which is both."""
    return "null" if value is None else f"{show_value(value)}, {json_type(value)}"
