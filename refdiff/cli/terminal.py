"""Output of commands on standard output and standard error."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unicodedata import category, east_asian_width

from refdiff import bundled
from refdiff.errors import CheckpointError
from refdiff.messages import printable

AFTER = 2.0
"""Seconds after which a terminal shows what is being done."""
_waiting_shown = threading.Event()
"""Whether `waiting` has a line on the terminal, which a message replaces."""
REPORTED_EVERY = 60.0
"""Seconds between two lines of progress where standard error is not a terminal."""


@contextmanager
def progress_bar(*, quiet: bool, **options: Any) -> Iterator[Any]:
    """Yield a bar of tqdm on standard error, disabled if that is no terminal; it leaves space for an echoed "^C"."""
    from tqdm import tqdm

    hidden, columns = quiet or not sys.stderr.isatty(), shutil.get_terminal_size().columns
    with tqdm(file=sys.stderr, disable=hidden, ncols=columns - 3, **options) as bar:
        yield bar


def minutely() -> Callable[[], bool]:
    """Return a function that returns whether `REPORTED_EVERY` has passed since it last returned True."""
    said = time.monotonic()

    def due() -> bool:
        nonlocal said
        passed = time.monotonic() - said >= REPORTED_EVERY
        said = time.monotonic() if passed else said
        return passed

    return due


def note(line: str) -> None:
    """Write a message to standard error, with control characters escaped and further lines indented.

    On a terminal, lines break between words.
    """
    clear, text = "\r\x1b[K" if _waiting_shown.is_set() else "", printable(line)
    if sys.stderr.isatty():
        wrapper = textwrap.TextWrapper(
            shutil.get_terminal_size().columns - 2, break_long_words=False, break_on_hyphens=False
        )
        text = "\n".join(map(wrapper.fill, text.split("\n")))
    sys.stderr.write(clear + f"{text}\n".replace("\n", "\n  ")[:-2])  # at once: the line may come back
    sys.stderr.flush()


_HARMLESS = "\n\t\u00ad\u200c\u200d"
"""What is shown although Python calls it unprintable, besides spaces: scripts and emoji need the joiners."""


_BREAKS = re.compile("(?<=[^ \t\n])(?=[ \t\n])|(?<=\n)|(?<=[\u2e80-\u9fff\uac00-\ud7a3\uff00-\uff60])")
"""Where a line may break: before a space, and after a letter of a script that needs none."""


def _harmless(text: str) -> str:
    """Escape what may control a terminal."""
    return "".join(c if c in _HARMLESS or category(c) == "Zs" else printable(c) for c in text)


def _width(text: str) -> int:
    """Return the columns of a text in one line; a letter of East Asia has two."""
    return sum(1 + (east_asian_width(c) in "FW") for c in text.expandtabs())


def write_text(text: str) -> None:
    """Write a model's text to standard output and flush it; on a terminal, what may control it is escaped.

    The tokens of an untrusted checkpoint may contain any control sequence, and marks that reverse the text after them.
    """
    sys.stdout.write(_harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def text_writer() -> Callable[[str], None]:
    """Return a function that writes a model's text piece by piece; on a terminal, lines break between words.

    There the last word waits until the next one begins.
    """
    if not sys.stdout.isatty():
        return write_text
    column, pending = 0, ""

    def write(text: str) -> None:
        nonlocal column, pending
        columns, shown = shutil.get_terminal_size().columns, ""
        parts = _BREAKS.split(pending + _harmless(text))
        *words, pending = [part[i : i + columns] for part in parts for i in range(0, max(len(part), 1), columns)]
        for word in words:
            if column and column + _width(word) > columns and not word.endswith("\n"):
                word, column = "\n" + word.lstrip(" "), 0
            column = 0 if word.endswith("\n") else column + _width(word.lstrip("\n"))
            shown += word
        write_text(shown)

    return write


_JSON_CONTROLS = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def json_text(value: Any, **options: Any) -> str:
    """Return JSON with letters as they are, and with the characters escaped that control a terminal."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return _JSON_CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


_VERDICT = re.compile(r"^((?: {2}\S+ +)?)(pass|fail|inconclusive)\b", re.MULTILINE)
_COLORS = {"pass": 32, "fail": 31, "inconclusive": 33}  # green, red, yellow


def print_report(fields: dict[str, Any], text: str | None = None) -> None:
    """Write a report to standard output: its text, or its fields as JSON if there is no text.

    Control characters are escaped: names in it are those of an untrusted file.
    """
    shown = json_text(fields, indent=2, allow_nan=False) if text is None else printable(text, sys.maxsize)
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR"):
        shown = _VERDICT.sub(lambda found: f"{found[1]}\x1b[{_COLORS[found[2]]}m{found[2]}\x1b[m", shown)
    sys.stdout.write(shown + "\n")


@contextmanager
def waiting(what: str | Callable[[], str], *, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """Show on a terminal, after two seconds, what is being done; the function that is yielded ends that early.

    `what` is called each second if it is a function.
    """
    over, started = threading.Event(), time.monotonic()

    def show() -> None:
        shown = False
        while not over.wait(1 if shown else AFTER):
            line = printable(what if isinstance(what, str) else what()).translate({9: r"\t", 10: r"\n"})
            shown = True
            _waiting_shown.set()
            seconds = f" ... {time.monotonic() - started:.0f} s"
            # "\r" returns to the beginning of the last row only
            columns = max(shutil.get_terminal_size().columns - len(seconds) - 1, 0)
            _rewrite_line(line[:columns] + seconds)
        if shown:
            _rewrite_line("")
            _waiting_shown.clear()

    def done() -> None:
        over.set()
        if thread.is_alive():
            thread.join()

    thread = threading.Thread(target=show, daemon=True)
    if not quiet and sys.stderr.isatty():
        thread.start()
    try:
        yield done
    finally:
        done()


def _rewrite_line(text: str) -> None:
    sys.stderr.write(f"\r{text}\x1b[K")
    sys.stderr.flush()


# What the library's messages tell a Python program to do → the same on a command line.
_FLAG_NAMES = {
    "local_files_only": "--offline",
    "cache_dir or HF_HOME": "HF_HOME",
    "gradients=False": "--no-gradients",
    "eager: got": "--eager: got",
    ", or pass chat_template=": "",
    'backend "cupy"': "--backend cupy",
    'backend "numpy"': "--backend numpy",
}


def name_flags(message: str) -> str:
    """Replace the library's arguments in a message by flags, and the folder of the bundled model by `bundled`."""
    for argument, flag in _FLAG_NAMES.items():
        message = message.replace(argument, flag)
    return message.replace(str(bundled.FOLDER), bundled.NAME)


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, with its type if the message is not enough."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[0] + " " + "; ".join(lines[1:]) if lines and lines[0].endswith(":") else " ".join(lines)
    if isinstance(error, OSError) and error.strerror:
        known = {FileNotFoundError: "no such file", IsADirectoryError: "got a folder, expected a file"}
        why = known.get(type(error), error.strerror)
        text = f"{error.filename}: {why}" if error.filename else why
    elif isinstance(error, MemoryError):
        text = f"out of memory: {text or 'the model does not fit'}; a smaller model or a shorter text needs less"
    elif not (isinstance(error, ValueError | OSError | ImportError | RuntimeError) and text):
        text = f"{type(error).__name__}: {text}" if text else f"{type(error).__name__}; --debug shows where"
    if text.endswith("Permission denied"):
        text += "; change its permissions, or name another"
    return printable(text)


def format_error(error: BaseException) -> str:
    """Return an error's message in one line, or with one line for each problem of a checkpoint."""
    head, *problems = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if isinstance(error, CheckpointError) and head.endswith(":") and len(problems) > 1:
        return printable("\n".join([head, *problems]))
    return one_line(error)


def size(count: float) -> str:
    """Format a number of bytes in powers of 1000, as disks and the hub do: 4.94 GB, 17.2 MB, 512 B."""
    power = min(int(math.log10(max(count, 1))) // 3, 4)
    value = count / 1000**power
    digits = 0 if power == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
