"""What the flags of all commands are made of: numbers with limits, flags in common, the error of a wrong one."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any


class UsageError(ValueError):
    """A command line that cannot be carried out, found after parsing; the exit status is 2."""


@dataclass(frozen=True)
class Number:
    """A whole or real number between two limits: argparse's `type`, and the check of a field in a JSONL file."""

    kind: type[int] | type[float]
    low: float
    high: float = math.inf
    above: bool = False  # the lower limit itself is outside
    off: str = ""

    def __call__(self, text: str) -> int | float:
        try:
            value = self.kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {self._name}; {self.accepted}") from None
        return self.check(value, text)

    def check(self, value: object, shown: str | None = None) -> int | float:
        """Return a number that is inside the limits; raises argparse.ArgumentTypeError for anything else."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise argparse.ArgumentTypeError(f"{value!r} is not a {self._name}; {self.accepted}")
        if self.kind is int and isinstance(value, float) and not value.is_integer():
            raise argparse.ArgumentTypeError(f"{value!r} is not a {self._name}; {self.accepted}")
        inside = self.low < value if self.above else self.low <= value
        if not inside or value > self.high or value == math.inf:
            raise argparse.ArgumentTypeError(f"{shown or value} is out of range; {self.accepted}")
        return self.kind(value)

    @property
    def _name(self) -> str:
        return "whole number" if self.kind is int else "number"

    @property
    def accepted(self) -> str:
        """The limits in words, and what turns the option off."""
        low = f"a {self._name} {'above' if self.above else 'from'} {self.low:g}"
        limits = f"{low} to {self.high:g}" if math.isfinite(self.high) else low if self.above else f"{low} up"
        return f"give {limits}" + (f" ({self.off})" if self.off else "")


# What the library's messages tell a Python program to do → the same on a command line.
_IN_FLAGS = {"local_files_only": "--offline", "cache_dir or HF_HOME": "HF_HOME", "gradients=False": "--no-gradients"}


def in_flags(message: str) -> str:
    """Put the flags of the command line in place of the library's arguments in a message."""
    for argument, flag in _IN_FLAGS.items():
        message = message.replace(argument, flag)
    return message


def add_common(group: Any) -> None:
    group.add_argument("--offline", action="store_true", help="use only files that are here already (default: off)")
    group.add_argument("--debug", action="store_true", help="show a traceback when something fails (default: off)")


def add_dask(group: Any, piece: str) -> None:
    """Add --dask; `piece` says what goes to a worker at a time."""
    group.add_argument(
        "--dask",
        metavar="ADDRESS",
        help=f"let the workers of a dask scheduler do it, {piece}; tcp://scheduler:8786 (default: none = this process)",
    )
