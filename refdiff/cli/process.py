"""The process of a command: its streams, Ctrl-C, warnings, and errors for two silent crashes.

A library in Rust may panic, and prints that to standard error itself. And where a memory-mapped file has lost the page
that is read, because somebody cut the file short, the system sends SIGBUS, which ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Any, TypeVar

from refdiff.cli.terminal import name_flags, note
from refdiff.messages import NATIVE_CALLS, printable

T = TypeVar("T")

_MAP = re.compile(r"(\w+)-(\w+) \S+ (\w+) \S+ (\d+) +(/.*)")
"""A line of /proc/self/maps: first and last address, permissions, offset, device, inode, path."""


def open_streams() -> None:
    """Write UTF-8 in any locale, and replace closed standard streams by the null device.

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


@contextmanager
def ctrl_c_calls(function: Callable[..., None]) -> Iterator[None]:
    """Call a function on Ctrl-C, unless the process ignores Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, function)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _repeat_after_finalizers(kind: type[BaseException], repeat: Callable[[Any], int]) -> Iterator[None]:
    """Send a signal again whose exception, of this kind, was raised in a finalizer: Python prints it and drops it.

    Args:
        repeat: returns the number of the signal; gets the exception.
    """
    before, main = sys.unraisablehook, threading.get_ident()

    def inside_hook() -> bool:
        frame = sys._current_frames().get(main)
        while frame is not None and frame.f_code is not hook.__code__:
            frame = frame.f_back
        return frame is not None

    def send(number: int) -> None:
        while inside_hook():  # what is raised there is dropped, too
            time.sleep(0.01)
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main, number)  # ends a blocking read of the main thread
        else:
            signal.raise_signal(number)

    def hook(dropped: Any) -> None:
        if isinstance(dropped.exc_value, kind):
            threading.Thread(target=send, args=[repeat(dropped.exc_value)], daemon=True).start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def remember_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed.

    C code whose import a signal ends, as NumPy's, raises an ImportError that does not say so.
    """
    pressed: list[bool] = []

    def interrupt(*_: object) -> None:
        pressed.append(True)
        raise KeyboardInterrupt

    with _repeat_after_finalizers(KeyboardInterrupt, lambda _: signal.SIGINT), ctrl_c_calls(interrupt):
        yield lambda: bool(pressed)


class _SignalExit(SystemExit):
    """The exit by a signal."""


@contextmanager
def exit_on_signals() -> Iterator[Callable[[], int]]:
    """Turn SIGTERM and SIGHUP into an ordinary exit, so that temporary files are deleted; a second one ends at once.

    The exit status is 128 + the signal's number. A signal that the process ignores, as under nohup, stays ignored.
    Yields a function that returns the status of the signal that came; 0 if none did.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    caught = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        caught = []
    statuses = [0]

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        statuses.append(128 + number)
        raise _SignalExit(128 + number)

    def again(dropped: Any) -> int:
        number: int = dropped.code - 128
        signal.signal(number, end)
        return number

    for number in caught:
        signal.signal(number, end)
    try:
        with _repeat_after_finalizers(_SignalExit, again):
            yield lambda: statuses[-1]
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


def interrupted() -> None:
    """Flush the output, and print that the command was interrupted."""
    discard_output()
    note("refdiff: interrupted")


def discard_output() -> bool:
    """Flush standard output. If that fails, discard the rest, so that Python reports no error, and return False."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@contextmanager
def capture_panics() -> Iterator[None]:
    """Keep the message of a Rust library's panic off standard error; an exception has it, too.

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
            try:
                yield
            finally:
                os.dup2(stderr, 2)
                if text := os.pread(kept, os.fstat(kept).st_size, 0):
                    os.lseek(kept, 0, os.SEEK_SET)
                    os.ftruncate(kept, 0)
            if text:
                os.write(2, text)

        token = NATIVE_CALLS.set(call)
        try:
            yield
        finally:
            NATIVE_CALLS.reset(token)
            os.close(stderr)


def interruptible(function: Callable[[], T]) -> T:
    """Call a function of C code in a thread, for which Ctrl-C does not wait.

    `capture_panics` does not cover this thread: after Ctrl-C it would hide later messages.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def call() -> None:
        try:
            done.append(Context().run(function))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)  # without a limit, Ctrl-C would have no effect on Windows
    if failed:
        raise failed[0]
    return done[0]


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show each warning as one line, without its place in the source."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        note(f"refdiff: warning: {name_flags(' '.join(str(message).split()))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def explain_bus_errors(command: str, status: int, hint: str = "") -> Iterator[None]:
    """On SIGBUS, end the process with `status` and an error that names the file.

    The handler is C code that calls Python: Python's own handlers run only after the instruction that failed, which
    would fail again for ever. It interrupts a read of array data, never the interpreter, so it may run Python.
    """
    if not hasattr(signal, "SIGBUS"):  # Windows does not let a mapped file be cut short
        yield
        return
    once = threading.Lock()

    def end(number: int) -> None:
        once.acquire()  # another thread that gets the signal meanwhile waits for the end
        os.write(2, f"refdiff {command}: error: {explanation(hint)}\n".encode(errors="backslashreplace"))
        os._exit(status)

    library = ctypes.CDLL(None)
    library.signal.restype, library.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    before = library.signal(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        library.signal(signal.SIGBUS, before)


def explanation(hint: str) -> str:
    """Return an error that names the mapped file that has become shorter, or those that may have."""
    mapped = mapped_files()
    files = [path for path, shorter in mapped if shorter] or [path for path, _ in mapped]
    names = " or ".join(map(str, files)) or "a memory-mapped file"
    return (
        f"{printable(names)}: was cut short or overwritten while it was in use; write a new file beside it and rename "
        f"that{hint}"
    )


def mapped_files() -> list[tuple[Path, bool]]:
    """Return the safetensors files that this process has mapped, and whether each became shorter (on Linux)."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    found: dict[Path, bool] = {}
    for begin, end, offset, inode, name in (match.groups() for match in map(_MAP.fullmatch, lines) if match):
        with contextlib.suppress(OSError):
            status = Path(name).stat()
            if status.st_ino == int(inode) and name.endswith(".safetensors"):
                pages = -(-status.st_size // mmap.PAGESIZE) * mmap.PAGESIZE
                mapped = int(offset, 16) + int(end, 16) - int(begin, 16)
                found[Path(name)] = found.get(Path(name), False) or pages < mapped
    return list(found.items())
