"""How soon a command is done: what the few tests that limit a time measure."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

BARE = 0.03  # seconds that an interpreter which does nothing takes on the machine that the limits were written for


def start_seconds(command: Sequence[str], **options: Any) -> float:
    """The least time of five runs, in seconds of a machine on which a bare interpreter takes 0.03 s.

    Both are measured in turn, so that a slow or busy machine is slow for both.
    """
    least = [float("inf"), float("inf")]
    for _ in range(5):
        for i, words in enumerate((command, (sys.executable, "-c", "pass"))):
            started = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True, **options)
            least[i] = min(least[i], time.perf_counter() - started)
    return least[0] * min(BARE / least[1], 1.0)
