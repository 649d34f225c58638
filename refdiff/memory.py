"""Memory: what the machine has, what of it is free, and what this process has held."""

from __future__ import annotations

import os
import sys
from pathlib import Path

UNKNOWN_MEMORY = 2**63 - 1


def physical_memory() -> int:
    """Return the bytes of memory that the machine has; `UNKNOWN_MEMORY` where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return UNKNOWN_MEMORY


def available_memory(info: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory that this process may still use, swap included; None where Linux does not say."""
    told = _told(info, "MemAvailable:", "SwapFree:")
    limits = [groups / "memory.max", groups / "memory" / "memory.limit_in_bytes"]  # of a container
    given = [path.read_text(encoding="ascii").strip() for path in limits if path.exists()]
    found = [*([sum(told)] if told else []), *(int(value) for value in given if value.isdecimal())]
    return min(found, default=None)


def peak_memory() -> int | None:
    """Return the most memory that this process has held, in bytes, or None where the system does not say."""
    if told := _told(Path("/proc/self/status"), "VmHWM:"):
        return told[0]  # getrusage's is inherited from the process that started this one
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _told(file: Path, *names: str) -> list[int]:
    """Return the bytes of each line `name: … kB` with one of these names; nothing where there is no such file."""
    if not file.exists():
        return []
    lines = (line.split() for line in file.read_text(encoding="ascii", errors="replace").splitlines())
    return [int(line[1]) * 1024 for line in lines if line and line[0] in names]
