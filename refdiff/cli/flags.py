"""Shared options, numbers with limits, and the error for wrong usage."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Collection, Mapping
from typing import Any

MAX_INTEGER = 2**63 - 1
"""The largest whole number that any option takes."""
MAX_PROMPT = 10_000_000
"""Bytes of the longest prompt: a pipe, or a device such as /dev/zero, may have no end."""
DTYPES = ("auto", "float32", "float64", "float16", "bfloat16")
MODEL = "MODEL"
PIPE_NOTE = (
    "Standard input that is not a terminal is the prompt. With a PROMPT it is appended to that; with -f FILE it is not "
    "read. A - in place of PROMPT or FILE stands for standard input. An empty PROMPT or FILE is a valid prompt, and so "
    "is empty standard input where - is given. In a shell loop over prompts, add < /dev/null."
)


class UsageError(ValueError):
    """Wrong usage that is found after parsing; the exit status is 2."""


class Number:
    """A number between two limits: a `type` of argparse, and a check of numbers in a file.

    `above` leaves out the lower limit itself; `or_zero` takes 0 below it; `off` says which value turns the option off.
    """

    def __init__(
        self,
        kind: type[int] | type[float],
        low: float,
        high: float = math.inf,
        *,
        above: bool = False,
        or_zero: bool = False,
        off: str = "",
    ) -> None:
        self.kind, self.low, self.high, self.above, self.or_zero, self.off = kind, low, high, above, or_zero, off

    def __call__(self, text: str) -> int | float:
        try:
            value = self.kind(text)
        except ValueError:
            raise self._error(text, self.high) from None
        return self.check(value, text)

    def check(self, value: object, shown: str | None = None) -> int | float:
        """Return a number inside the limits; raises argparse.ArgumentTypeError for anything else."""
        shown = repr(value) if shown is None else shown
        whole = self.kind is int
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or (whole and isinstance(value, float) and not value.is_integer())
        ):
            raise self._error(shown, self.high)
        low = (self.low < value if self.above else self.low <= value) or (self.or_zero and value == 0)
        high = min(self.high, MAX_INTEGER if whole else 1e308)
        if not low or value > high:
            raise self._error(shown, high if value > high else self.high)
        return self.kind(value)

    def _error(self, shown: str, high: float) -> argparse.ArgumentTypeError:
        """Return the error, with the typed text and the limits."""
        shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
        kind, form = ("whole number", "") if self.kind is int else ("number", "g")
        zero = "0 or " if self.or_zero else ""
        limits = f"a {kind} above {self.low:{form}}" if self.above else f"a {kind} of at least {self.low:{form}}"
        if math.isfinite(high):
            limits += f" and at most {high:{form}}"
        accepted = zero + limits + (f" ({self.off})" if self.off else "")
        return argparse.ArgumentTypeError(f"got {shown or 'nothing'}, expected {accepted}")


def refuse(why: str, given: Mapping[str, object]) -> None:
    """Raise `UsageError` for the options in `given` that have a value; {} in `why` stands for them."""
    if flags := ", ".join(flag for flag, value in given.items() if value):
        raise UsageError(f"{flags}: {why.format(flags)}")


def add_common(group: Any, *, offline: bool = True) -> None:
    """Add the options that every command has."""
    group.add_argument("-q", "--quiet", action="store_true", help="no progress")
    if offline:
        group.add_argument("--offline", action="store_true", help="use only files on this machine")
    group.add_argument("--debug", action="store_true", help="show a traceback on errors")


def add_model(group: Any, *flags: str, **options: Any) -> None:
    """Add the model as options `flags` or as an argument; the default is REFDIFF_MODEL or the bundled one."""
    from refdiff import bundled

    variable = os.environ.get("REFDIFF_MODEL")
    text = f"folder or hub repo (default: {'$REFDIFF_MODEL' if variable else 'bundled'})"
    group.add_argument(*flags, metavar=MODEL, default=variable or bundled.NAME, help=text, **options)


def utf8_text(text: str) -> str:
    """Parse a text, as a `type` of argparse. Bytes that are not UTF-8 arrive as half surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"got bytes that are not UTF-8 at character {error.start}, expected UTF-8 text"
        ) from None
    return text


def add_prompt(group: Any) -> None:
    """Add PROMPT, -p and -f."""
    words: dict[str, Any] = {"type": utf8_text, "metavar": "PROMPT"}
    group.add_argument("prompt", nargs="?", help="text; a pipe is appended (in loops: < /dev/null)", **words)
    group.add_argument("-p", "--prompt", dest="prompt_flag", help="the same, as an option", **words)
    group.add_argument("-f", "--file", metavar="FILE", help="read the text from a UTF-8 file")


def add_dtype(group: Any, choices: Collection[str] = DTYPES, text: str = "the weights' type", **options: Any) -> None:
    """Add --dtype."""
    default, own = ("auto", " (default: auto = as saved)") if "auto" in choices else ("float32", "")
    group.add_argument("--dtype", choices=choices, default=default, metavar="TYPE", help=text + own, **options)


def add_threads(group: Any, **options: Any) -> None:
    """Add --threads."""
    count: dict[str, Any] = {"type": Number(int, 0, off="0 = all cores"), "default": 0, "metavar": "N"}
    group.add_argument("--threads", help="CPU threads, 0 = all cores", **count, **options)


def add_backend(group: Any) -> None:
    """Add --backend."""
    names = ("numpy", "cupy")
    group.add_argument("--backend", choices=names, default="numpy", metavar="NAME", help="numpy = CPU, cupy = CUDA GPU")


def add_machine(group: Any) -> None:
    """Add the options for loading and computing a model."""
    add_backend(group)
    add_dtype(group)
    how = ("auto", "expanded", "stored")
    group.add_argument(
        "--weights", choices=how, default="auto", metavar="HOW", help="16-bit weights: stored or expanded"
    )
    group.add_argument("--no-mmap", action="store_true", help="do not memory-map the weights")
    add_threads(group)
