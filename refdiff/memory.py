"""The memory of the machine, its free part, and the peak of this process."""

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
    return min([memory, *(limit for limit, _ in _limits(groups))])


def available_memory(info: Path = Path("/proc/meminfo"), groups: Path = _GROUPS) -> int | None:
    """Return the bytes of memory that this process may still use, swap included; None if they are unknown."""
    free = _bytes_of(info, "MemAvailable:", "SwapFree:")
    found = [*([sum(free)] if free else []), *(max(limit - _used(usage), 0) for limit, usage in _limits(groups))]
    return min(found, default=None)


def _limits(groups: Path) -> list[tuple[int, Path]]:
    """Return each memory limit of the container in bytes, and the file that has what it uses."""
    files = (  # cgroups version 2, then version 1
        (groups / "memory.max", groups / "memory.current"),
        (groups / "memory/memory.limit_in_bytes", groups / "memory/memory.usage_in_bytes"),
    )
    return [(most, usage) for limit, usage in files if (most := _number(limit)) is not None]


def _used(usage: Path) -> int:
    """Return the bytes that the container uses.

    Cached files that were not read lately do not count: the system drops them before it runs out of memory.
    """
    cached = max(_bytes_of(usage.with_name("memory.stat"), "inactive_file", "total_inactive_file"), default=0)
    return max((_number(usage) or 0) - cached, 0)


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes; None if the system does not report it."""
    if peak := _bytes_of(Path("/proc/self/status"), "VmHWM:"):
        return peak[0]  # getrusage would include the peak of the parent process
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _number(file: Path) -> int | None:
    """Return the number that a file holds; None if there is no such file, or it has a word such as max."""
    text = file.read_text(encoding="ascii").strip() if file.exists() else ""
    return int(text) if text.isdecimal() else None


def _bytes_of(file: Path, *names: str) -> list[int]:
    """Return the bytes of each line with one of these names; an empty list if there is no such file.

    A line is `name: … kB`, or `name …` in bytes.
    """
    if not file.exists():
        return []
    lines = (line.split() for line in file.read_text(encoding="ascii", errors="replace").splitlines())
    return [int(line[1]) * (1024 if line[-1] == "kB" else 1) for line in lines if line and line[0] in names]
