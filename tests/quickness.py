"""How soon a command is done: what the few tests that limit a time measure."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

BARE = 0.02  # seconds that an interpreter which does nothing takes on the machine that the limits were written for


def start_seconds(command: Sequence[str], **options: Any) -> float:
    """The least processor time of five runs, in seconds of a machine on which a bare interpreter takes 0.02 s.

    Both are measured in turn, so that a slow machine is slow for both.
    """
    least = [float("inf"), float("inf")]
    for _ in range(5):
        for i, words in enumerate((command, (sys.executable, "-c", "pass"))):
            before = children_seconds()
            subprocess.run(words, check=True, capture_output=True, **options)
            least[i] = min(least[i], children_seconds() - before)
    return least[0] * min(BARE / least[1], 1.0)


def children_seconds() -> float:
    """The processor time of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
