"""One process at a time in a run's folder: two would mix their logs and sweep up each other's files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: there nothing is locked
    fcntl = None

NAME = ".refdiff-train.lock"


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other processes out of a folder, made if needed; at the end it is taken away if nothing else is in it.

    The lock is the system's: it ends with the process, however that ends, and a lock file that is left locks nothing.

    Raises:
        RuntimeError: another process holds it.
        OSError: the folder or the file in it cannot be made.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _locked(descriptor, out / NAME):
            raise RuntimeError(
                f"{out}: another process trains in this folder: wait until it ends, or name another folder"
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (out / NAME).unlink()
    finally:
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # not empty
                out.rmdir()


def _locked(descriptor: int, path: Path) -> bool:
    """Lock an open file, unless another process has, or has just taken the file away."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
