"""Standard output, standard error and this process's memory, as the commands use them."""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from refdiff.messages import printable


def text_is_utf8() -> None:
    """Write UTF-8 whatever the locale says, as files of text are; a locale such as C could write no other letters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(encoding="utf-8")


def note(line: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; the kind of error where the message alone says little."""
    return printable(_one_line(error))


def _one_line(error: BaseException) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[0] + " " + "; ".join(lines[1:]) if lines and lines[0].endswith(":") else " ".join(lines)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError | OSError | ImportError | RuntimeError) and text:
        return text
    if isinstance(error, MemoryError):
        return f"out of memory: {text or 'the model does not fit'}; a smaller model or a shorter text needs less"
    return f"{type(error).__name__}: {text}" if text else f"{type(error).__name__}; --debug shows where"


def interrupted() -> None:
    """Leave what has been written, on a line of its own, and say why it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
    note("refdiff: interrupted")


def discard_output() -> None:
    """Send what is still to be written nowhere, so that Python does not complain about it when it exits."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show the library's warnings as one line each, without the place in the source."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        note(f"refdiff: warning: {printable(' '.join(str(message).split()))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def size(count: float) -> str:
    """A number of bytes for people: 4.94 GB, 17.2 MB, 512 B; powers of 1000, as disks and the hub count."""
    power = min(int(math.log10(max(count, 1))) // 3, 4)
    value = count / 1000**power
    digits = 0 if power == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
