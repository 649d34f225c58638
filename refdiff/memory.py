"""The memory of the machine, and the peak of this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

UNKNOWN_MEMORY = 2**63 - 1
_GROUPS = Path("/sys/fs/cgroup")


def physical_memory(groups: Path = _GROUPS) -> int:
    """Return the bytes of memory that the machine or its container has; `UNKNOWN_MEMORY` where it is unknown."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        memory = UNKNOWN_MEMORY
    return min([memory, *_limits(groups)])


def _limits(groups: Path) -> list[int]:
    """Return the memory limits of the container in bytes, of cgroups version 2, then version 1."""
    files = (groups / "memory.max", groups / "memory/memory.limit_in_bytes")
    texts = [file.read_text(encoding="ascii").strip() for file in files if file.exists()]
    return [int(text) for text in texts if text.isdecimal()]  # not a word such as max


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes; None if the system does not report it."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])  # getrusage would include the peak of the parent process
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
