"""The oracle, as it is measured: processor time, for it runs beside other work on machines of many cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff import oracle
from refdiff.bench.side import Side

DTYPE = "bfloat16"
LAYER, HEAD_DIM, KEY_HEADS = 5, 64, 4
"""Of the problem; a pair of key heads for so many heads."""


class OracleSide(Side):
    """A check of the right output, and a diagnosis of one whose query heads are paired in another order."""

    requests = (*Side.requests, "check", "diagnose")
    clock = staticmethod(time.process_time)

    def check(self, size: int, heads: int) -> dict[str, Any]:
        """Check the output of `size` queries and keys.

        Raises:
            ValueError: it does not pass.
        """
        return self._judged(size, heads, "halves", oracle.check, "pass")

    def diagnose(self, size: int, heads: int) -> dict[str, Any]:
        """Diagnose the output of heads that are neighbors.

        Raises:
            ValueError: the diagnosis is another.
        """
        return self._judged(size, heads, "interleaved", oracle.diagnose, "unique")

    def _judged(self, size: int, heads: int, pairing: str, judge: Callable[..., Any], status: str) -> dict[str, Any]:
        keys = 2 * max(1, heads // KEY_HEADS)
        spec = oracle.Spec.preset("hf_diffllama", query_heads=2 * heads, key_heads=keys, head_dim=HEAD_DIM, layer=LAYER)
        (case,) = oracle.cases("natural", spec=spec, dtype=DTYPE, batch=1, queries=size, keys=size)
        right = oracle.truth(spec.replace(pairing=pairing), case.inputs, want=("out",)).out
        mine = np.asarray(right, dtype=np.float32)
        seconds, found = self.timed(lambda: judge(mine, spec, case.inputs, recipe=DTYPE))
        if found.status != status:
            raise ValueError(f"the oracle: got {found.status}, expected {status}\n{found}")
        return {"seconds": seconds}
