"""Standard output, standard error and this process's memory, as the commands use them."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from refdiff import bundled
from refdiff.errors import CheckpointError
from refdiff.messages import NATIVE_CALLS, printable

AFTER = 2.0
"""Seconds after which a terminal is told what takes so long."""
REPORTED_EVERY = 60.0
"""Seconds between two lines of progress where standard error is not a terminal."""


def progress_bar(*, quiet: bool, **options: Any) -> Any:
    """A bar of tqdm on standard error: disabled where that is not a terminal. "^C", which it echoes, fits beside it."""
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty()
    return tqdm(file=sys.stderr, disable=hidden, ncols=shutil.get_terminal_size().columns - 3, **options)


def minutely() -> Callable[[], bool]:
    """A function that says whether `REPORTED_EVERY` has passed since the last line of progress."""
    said = time.monotonic()

    def due() -> bool:
        nonlocal said
        passed = time.monotonic() - said >= REPORTED_EVERY
        said = time.monotonic() if passed else said
        return passed

    return due


def open_streams() -> None:
    """Write UTF-8 whatever the locale says, and nowhere where a standard stream is closed.

    PYTHONUNBUFFERED makes standard output forget what it could not write, by which `discard_output` knows that it
    failed. So it gets a buffer, which every line flushes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:  # a file opened later must not take the number of a standard stream
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif number == 1 and isinstance(getattr(stream, "buffer", None), io.RawIOBase):
            sys.stdout = open(1, "w", 1, encoding="utf-8", errors=stream.errors, closefd=False)  # noqa: SIM115
        elif number and isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(encoding="utf-8")


def note(line: str) -> None:
    """Write a message to standard error, without what a terminal could obey; its further lines are indented."""
    sys.stderr.write(f"{printable(line)}\n".replace("\n", "\n  ")[:-2])
    sys.stderr.flush()


_CONTROLS = {code: ascii(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def write_text(text: str) -> None:
    """Write a model's text to standard output at once: unchanged, or to a terminal with control characters escaped.

    The tokens of a checkpoint from elsewhere may hold any sequence that a terminal obeys.
    """
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_report(fields: dict[str, Any], text: str | None = None) -> None:
    """Write a report to standard output: its text, or without one its fields as one JSON object."""
    shown = json.dumps(fields, ensure_ascii=False, indent=2, allow_nan=False) if text is None else text
    sys.stdout.write(shown + "\n")


class Waiting:
    """Show on a terminal, after two seconds, what takes so long; gone when it is left, or on `done`.

    `what` is called each second if it is a function.
    """

    def __init__(self, what: str | Callable[[], str], *, quiet: bool = False) -> None:
        self._what, self._started = what, time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if not quiet and sys.stderr.isatty():
            self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Waiting:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done()

    def done(self) -> None:
        """Take the line away."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _show(self) -> None:
        if self._over.wait(AFTER):
            return
        while True:
            what = self._what if isinstance(self._what, str) else self._what()
            line = f"{what} ... {time.monotonic() - self._started:.0f} s"
            sys.stderr.write(f"\r{line}\x1b[K")
            sys.stderr.flush()
            if self._over.wait(1):
                break
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


# What the library's messages tell a Python program to do → the same on a command line.
_IN_FLAGS = {
    "local_files_only": "--offline",
    "cache_dir or HF_HOME": "HF_HOME",
    "gradients=False": "--no-gradients",
    ", or pass chat_template=": "",
}


def in_flags(message: str) -> str:
    """Put the words of the command line in place of the library's in a message: flags, and `bundled` for its folder."""
    for argument, flag in _IN_FLAGS.items():
        message = message.replace(argument, flag)
    return message.replace(str(bundled.FOLDER), bundled.NAME)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; the kind of error where the message alone says little."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[0] + " " + "; ".join(lines[1:]) if lines and lines[0].endswith(":") else " ".join(lines)
    if isinstance(error, OSError) and error.strerror:
        why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        text = f"{error.filename}: {why}" if error.filename else why
    elif isinstance(error, MemoryError):
        text = f"out of memory: {text or 'the model does not fit'}; a smaller model or a shorter text needs less"
    elif not (isinstance(error, ValueError | OSError | ImportError | RuntimeError) and text):
        text = f"{type(error).__name__}: {text}" if text else f"{type(error).__name__}; --debug shows where"
    return printable(text)


def shown(error: BaseException) -> str:
    """An error's message: one line, but each of several problems of a checkpoint on a line of its own."""
    head, *problems = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if isinstance(error, CheckpointError) and head.endswith(":") and len(problems) > 1:
        return printable("\n".join([head, *problems]))
    return one_line(error)


@contextmanager
def ctrl_c_remembered() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C was pressed.

    C code whose import Ctrl-C ends, as NumPy's, raises an ImportError that does not say so.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(os, "set_blocking"):
        yield lambda: False
        return
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def pressed() -> bool:
        try:
            return signal.SIGINT in os.read(reading, 4096)
        except BlockingIOError:
            return False

    try:
        yield pressed
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


def interrupted() -> None:
    """Leave what has been written, on a line of its own, and say why it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
    note("refdiff: interrupted")


def discard_output() -> bool:
    """Flush standard output, or discard what cannot be written, which Python would report at exit; whether it could."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@contextmanager
def panics_unprinted() -> Iterator[None]:
    """Keep off standard error what a Rust library prints of a panic, which becomes an error that says it.

    The library writes to descriptor 2 itself. During each of its calls that is a file of its own, whose text is passed
    on where the call succeeds.
    """
    if hasattr(os, "memfd_create"):
        unnamed: Any = os.fdopen(os.memfd_create("stderr"), "w+b")
    else:
        import tempfile  # slow to import

        unnamed = tempfile.TemporaryFile()  # noqa: SIM115
    with unnamed as file:
        stderr, kept = os.dup(2), file.fileno()

        @contextmanager
        def call() -> Iterator[None]:
            os.dup2(kept, 2)
            succeeded = False
            try:
                yield
                succeeded = True
            finally:
                os.dup2(stderr, 2)
                if os.fstat(kept).st_size:
                    text = os.pread(kept, os.fstat(kept).st_size, 0)
                    os.lseek(kept, 0, os.SEEK_SET)
                    os.ftruncate(kept, 0)
                    if succeeded:
                        os.write(2, text)

        token = NATIVE_CALLS.set(call)
        try:
            yield
        finally:
            NATIVE_CALLS.reset(token)
            os.close(stderr)


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show the library's warnings as one line each, without the place in the source."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        note(f"refdiff: warning: {in_flags(' '.join(str(message).split()))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def size(count: float) -> str:
    """A number of bytes for people: 4.94 GB, 17.2 MB, 512 B; powers of 1000, as disks and the hub count."""
    power = min(int(math.log10(max(count, 1))) // 3, 4)
    value = count / 1000**power
    digits = 0 if power == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
