"""Building blocks of the commands' flags: numbers with limits, shared options, and the error of a wrong one."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Collection
from typing import Any

LARGEST = 2**63 - 1
"""The largest whole number that any option takes."""
MAX_PROMPT = 10_000_000
"""Bytes of the longest prompt: a pipe, or a device such as /dev/zero, may have no end."""
DTYPES = ("auto", "float32", "float64", "float16", "bfloat16")
MODEL = "MODEL"
PIPE_NOTE = (
    "Standard input that is not a terminal is the prompt, or is appended to PROMPT. In a shell loop over prompts, add "
    "< /dev/null."
)


class UsageError(ValueError):
    """A command line that cannot be carried out, found after parsing; the exit status is 2."""


class Number:
    """A whole or real number between two limits: argparse's `type`, and the check of a field in a JSONL file.

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
            raise self._error(text) from None
        return self.check(value, text)

    def check(self, value: object, shown: str | None = None) -> int | float:
        """Return a number inside the limits; raises argparse.ArgumentTypeError for anything else."""
        shown = repr(value) if shown is None else shown
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(shown)
        whole = self.kind is int
        if whole and isinstance(value, float) and not value.is_integer():
            raise self._error(shown)
        low = (self.low < value if self.above else self.low <= value) or (self.or_zero and value == 0)
        high = min(self.high, LARGEST if whole else 1e308)
        if not low or value > high or value == math.inf:
            raise self._error(shown, high if value > high else self.high)
        return self.kind(value)

    def _error(self, shown: str, high: float | None = None) -> argparse.ArgumentTypeError:
        shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
        accepted = self._limits(self.high if high is None else high)
        return argparse.ArgumentTypeError(f"got {shown or 'nothing'}, expected {accepted}")

    @property
    def accepted(self) -> str:
        """The limits in words, and what turns the option off."""
        return self._limits(self.high)

    def _limits(self, high: float) -> str:
        kind, form = ("whole number", "") if self.kind is int else ("number", "g")
        zero = "0 or " if self.or_zero else ""
        limits = f"a {kind} above {self.low:{form}}" if self.above else f"a {kind} of at least {self.low:{form}}"
        if math.isfinite(high):
            limits += f" and at most {high:{form}}"
        return zero + limits + (f" ({self.off})" if self.off else "")


def add_common(group: Any, *, offline: bool = True, quiet: bool = True) -> None:
    """Add the options that every command has."""
    if quiet:
        group.add_argument("-q", "--quiet", action="store_true", help="no progress (default: off)")
    if offline:
        group.add_argument("--offline", action="store_true", help="use only files on this machine (default: off)")
    group.add_argument("--debug", action="store_true", help="show a traceback on errors (default: off)")


def add_model(group: Any) -> None:
    """Add -m, whose default is REFDIFF_MODEL or the bundled model."""
    group.add_argument(
        "-m",
        "--model",
        type=model_name,
        metavar=MODEL,
        default=default_model(),
        help=model_help(),
    )


def model_name(text: str) -> str:
    """Take the name of a model: argparse's `type`."""
    if not text:
        raise argparse.ArgumentTypeError("got nothing, expected a folder or a hub repo")
    return text


def utf8_text(text: str) -> str:
    """Take a text that a model reads: argparse's `type`. Bytes that are not UTF-8 arrive as half surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"got bytes that are not UTF-8 at character {error.start}, expected UTF-8 text"
        ) from None
    return text


def default_model() -> str:
    """The model of a command that was not given one."""
    from refdiff import bundled

    return os.environ.get("REFDIFF_MODEL") or bundled.NAME


def model_help() -> str:
    """The help of an argument whose default is `default_model`."""
    default = "$REFDIFF_MODEL" if os.environ.get("REFDIFF_MODEL") else "bundled"
    return f"folder or hub repo (default: {default})"


def add_prompt(group: Any) -> None:
    """Add PROMPT, -p and -f."""
    group.add_argument(
        "prompt",
        nargs="?",
        type=utf8_text,
        metavar="PROMPT",
        help="text; a pipe is appended (in loops: < /dev/null)",
    )
    group.add_argument(
        "-p", "--prompt", dest="prompt_flag", type=utf8_text, metavar="PROMPT", help="the same, as an option"
    )
    group.add_argument("-f", "--file", metavar="FILE", help="read the text from a UTF-8 file")


def add_dtype(group: Any, choices: Collection[str] = DTYPES, text: str = "the weights' type") -> None:
    """Add --dtype."""
    auto = "auto = as stored" if "auto" in choices else "float32"
    group.add_argument(
        "--dtype", choices=choices, default="auto" if "auto" in choices else "float32", metavar="TYPE",
        help=f"{text} (default: {auto})",
    )  # fmt: skip


def add_threads(group: Any) -> None:
    """Add --threads."""
    group.add_argument(
        "--threads", type=Number(int, 0, off="0 = all cores"), default=0, metavar="N",
        help="CPU threads, 0 = all cores (default: 0)",
    )  # fmt: skip


def add_backend(group: Any) -> None:
    """Add --backend."""
    group.add_argument(
        "--backend", choices=("numpy", "cupy"), default="numpy", metavar="NAME",
        help="numpy = CPU, cupy = CUDA GPU (default: numpy)",
    )  # fmt: skip


def add_machine(group: Any) -> None:
    """Add the options that say how a model is loaded and computed."""
    add_backend(group)
    add_dtype(group)
    group.add_argument(
        "--weights", choices=("auto", "expanded", "stored"), default="auto", metavar="HOW",
        help="16-bit weights: stored or expanded (default: auto)",
    )  # fmt: skip
    group.add_argument("--no-mmap", action="store_true", help="read the weights whole (default: off)")
    add_threads(group)


def add_dask(group: Any) -> None:
    """Add --dask."""
    group.add_argument("--dask", metavar="ADDRESS", help="address of a dask scheduler (default: none)")
