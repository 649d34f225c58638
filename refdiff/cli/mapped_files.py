"""Memory-mapped files that are cut short while a command reads them: one error that names the file.

Where a mapped file has lost the page that is read, the system sends SIGBUS, which ends the process without a word.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from refdiff.messages import printable

_MAP = re.compile(r"(\w+)-(\w+) \S+ (\w+) \S+ (\d+) +(/.*)")
"""A line of /proc/self/maps: first and last address, permissions, offset, device, inode, path."""


@contextlib.contextmanager
def bus_errors_explained(command: str, status: int, hint: str = "") -> Iterator[None]:
    """End the process with an error that names the file, and with `status`, where SIGBUS would end it.

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
    """Say which mapped file has become shorter; where none has by now, which ones it may have been."""
    mapped = mapped_files()
    files = [path for path, shorter in mapped if shorter] or [path for path, _ in mapped]
    names = " or ".join(map(str, files)) or "a memory-mapped file"
    return (
        f"{printable(names)}: was cut short or overwritten while it was in use; write a new file beside it and rename "
        f"that{hint}"
    )


def mapped_files() -> list[tuple[Path, bool]]:
    """The safetensors files that this process has mapped, and whether each is shorter than its mapping (on Linux)."""
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
