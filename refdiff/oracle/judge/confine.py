"""Give up rights for good, then run a program: memory, files, connections and other processes.

`process.py` starts this file as a program before anything of the kernel. What the system has taken away, no code that
runs later in the process or in one that it starts gets back. An audit hook in Python, as in `child.py`, can be undone.
Files, connections and processes are a matter of Landlock, which Linux has.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

LARGEST_FILE = 2**28
"""Bytes of one file that a kernel may write: a compiled kernel has some megabytes, a core dump or a flood has more."""
WRITE_FILE, READ_FILE, MAKE_REG, REMOVE_FILE, REFER, TRUNCATE = (1 << n for n in (1, 2, 8, 5, 13, 14))
CHANGES = WRITE_FILE | sum(1 << n for n in range(4, 13))
"""Files and folders made, written and removed. Listing a folder stays allowed: an import does it."""
CONNECT_TCP = 1 << 1
OTHER_SOCKETS_AND_SIGNALS = 0b11
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, PATH_BENEATH, NO_NEW_PRIVILEGES = 1, 1, 38


def landlock_version() -> int:
    """The version of Landlock that this system has: 0 where it has none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, VERSION_FLAG)))


def limit(memory: int) -> None:
    """Limit the memory and files of this process and its children, and let the system end them before others."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def readable(hidden: list[str], folder: str = "/") -> Iterator[str]:
    """All files and folders but those on the way to hidden folders: what lies beneath has the rights of these too."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_symlink() or entry.path in hidden:  # what a link leads to has a path of its own
                continue
            if any(path.startswith(f"{entry.path}/") for path in hidden):
                yield from readable(hidden, entry.path)
            else:
                yield entry.path


def confine(hidden: list[str], scratch: str) -> None:
    """Read no file beneath `hidden`, and change none but in `scratch` and `/dev`; nothing where there is no Landlock.

    Raises:
        OSError: the system refuses.
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
        except OSError:  # it has gone, or is closed to this user
            return
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= WRITE_FILE | READ_FILE | TRUNCATE
        checked(libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0))
        os.close(descriptor)

    for path in readable(hidden):
        allow(path, READ_FILE)
    allow("/dev", files & (READ_FILE | WRITE_FILE | MAKE_REG | REMOVE_FILE | TRUNCATE))
    allow(os.path.realpath(scratch), files)
    checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    checked(libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


if __name__ == "__main__":
    config = json.loads(sys.argv[1])
    limit(config["memory"])
    confine(config["hidden"], config["scratch"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(config["path"])}
    os.execve(sys.executable, [sys.executable, "-s", "-B", sys.argv[2], sys.argv[1]], environment)  # noqa: S606
