"""How much memory this process has held."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory() -> int | None:
    """The most memory that this process has held so far, in bytes, or None where the system does not say."""
    high_water = _status("VmHWM")
    if high_water is not None:  # getrusage's maximum is inherited from the process that started this one
        return high_water
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def own_memory() -> int | None:
    """The memory that this process has to itself now, without files that it maps, in bytes; None where not said."""
    return _status("RssAnon")


def _status(name: str) -> int | None:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
