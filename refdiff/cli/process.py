"""The process of a command: its streams, signals, warnings, and what a Rust library prints when it panics."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from refdiff.cli.terminal import name_flags, note
from refdiff.messages import NATIVE_CALLS


def open_streams() -> None:
    """Write UTF-8 in any locale, and replace closed standard streams by the null device."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            os.open(os.devnull, os.O_RDWR)  # gets the number of the stream, which is the lowest free one
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif number and isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(encoding="utf-8")


@contextmanager
def handle_signals(function: Callable[[int, Any], None], *names: str) -> Iterator[None]:
    """Call a function on these signals, except those that the process ignores, as under nohup."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        handled = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, function) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exit with 128 + the signal's number, so that temporary files are deleted.

    A second SIGTERM ends at once.
    """

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    with handle_signals(end, "SIGTERM", "SIGHUP"):
        yield


def discard_output() -> bool:
    """Flush standard output. If that fails, discard the rest, so that Python reports no error, and return False."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@contextmanager
def silence_panics() -> Iterator[None]:
    """Discard what a Rust library writes to descriptor 2 itself during a call: its exception has the message, too."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)

    @contextmanager
    def call() -> Iterator[None]:
        os.dup2(null, 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)

    token = NATIVE_CALLS.set(call)
    try:
        yield
    finally:
        NATIVE_CALLS.reset(token)
        os.close(stderr)
        os.close(null)


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show each warning as one line, without its place in the source."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        note(f"refdiff: warning: {name_flags(' '.join(str(message).split()))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
