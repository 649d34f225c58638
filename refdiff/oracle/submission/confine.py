"""Drop rights irrevocably, then run a program: limit memory, files, connections and access to other processes.

`process.py` starts this file as a program before any code of the kernel runs. The restrictions hold for the process and
its children until they end, while the audit hook of `child.py` can be undone. Files, connections and processes are
restricted by Landlock, which only Linux has.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

LARGEST_FILE = 2**28
"""The most bytes of one file that a kernel may write; a compiled kernel has some megabytes."""
WRITE_FILE, READ_FILE, MAKE_REG, REMOVE_FILE, REFER, TRUNCATE = (1 << n for n in (1, 2, 8, 5, 13, 14))
CHANGES = WRITE_FILE | sum(1 << n for n in range(4, 13))
"""The rights to create, write and remove files and folders. Listing a folder stays allowed, since imports need it."""
CONNECT_TCP = 1 << 1
OTHER_SOCKETS_AND_SIGNALS = 0b11
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, PATH_BENEATH, NO_NEW_PRIVILEGES = 1, 1, 38
PARENT_DEATH_SIGNAL = 1


def landlock_version() -> int:
    """Return the version of Landlock, 0 if the system has none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, VERSION_FLAG)))


def limit_resources(memory: int) -> None:
    """Limit the memory and file size of this process and its children; when memory runs out, they are killed first."""
    import resource  # Windows has no such module, and `judge_file` says that it is not supported

    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def readable_paths(hidden: list[str], folder: str = "/") -> Iterator[str]:
    """Yield paths that cover everything but the hidden folders.

    A Landlock right extends to everything beneath a path, so the parents of hidden folders are replaced by their other
    entries.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_symlink() or entry.path in hidden:  # the target of a link has its own path
                continue
            if any(path.startswith(f"{entry.path}/") for path in hidden):
                yield from readable_paths(hidden, entry.path)
            else:
                yield entry.path


def confine(hidden: list[str], scratch: str) -> None:
    """Forbid reading beneath `hidden` and writing outside `scratch` and `/dev`; do nothing without Landlock.

    Raises:
        OSError: a system call of Landlock fails.
    """
    if not (version := landlock_version()):
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
        return result

    files = CHANGES | READ_FILE | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    handled = struct.pack("QQQ", files, CONNECT_TCP, OTHER_SOCKETS_AND_SIGNALS)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = checked(libc.syscall(CREATE_RULESET, handled, size, 0))

    def allow(path: str, rights: int) -> None:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # it was removed, or this user may not open it
            return
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= WRITE_FILE | READ_FILE | TRUNCATE
        checked(libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0))
        os.close(descriptor)

    for path in readable_paths(hidden):
        allow(path, READ_FILE)
    allow("/dev", files & (READ_FILE | WRITE_FILE | MAKE_REG | REMOVE_FILE | TRUNCATE))
    allow(os.path.realpath(scratch), files)
    checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    checked(libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def end_with_parent(judge: int) -> None:
    """Have Linux kill this process when the judge ends, for example by SIGKILL; a kernel may never return."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != judge:  # it has ended already
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    config = json.loads(sys.argv[1])
    limit_resources(config["memory"])
    confine(config["hidden"], config["scratch"])
    end_with_parent(config["judge"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(config["path"])}
    os.execve(sys.executable, [sys.executable, "-s", "-B", sys.argv[2], sys.argv[1]], environment)  # noqa: S606
