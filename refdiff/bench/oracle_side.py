"""The oracle, as it is measured: processor time, for it runs beside other work on machines of many cores."""

from __future__ import annotations

import time

import numpy as np

from refdiff import oracle
from refdiff.bench.side import Answer, Side

DTYPE = "bfloat16"
LAYER, HEAD_DIM, KEY_HEADS = 5, 64, 4
"""Of the problem; a pair of key heads for so many heads."""


class OracleSide(Side):
    """A check of the right output, and a diagnosis of one whose query heads are paired in another order."""

    clock = staticmethod(time.process_time)

    def check(self, size: int, batch: int) -> Answer:
        """Check the output of `size` queries and keys, which must pass."""
        return self._judged(size, batch, "halves", "check", "pass")

    def diagnose(self, size: int, batch: int) -> Answer:
        """Diagnose the output of heads that are neighbors, which must be found."""
        return self._judged(size, batch, "interleaved", "diagnose", "unique")

    def _judged(self, size: int, heads: int, pairing: str, judge: str, status: str) -> Answer:
        keys = 2 * max(1, heads // KEY_HEADS)
        spec = oracle.Spec.preset("hf_diffllama", query_heads=2 * heads, key_heads=keys, head_dim=HEAD_DIM, layer=LAYER)
        (case,) = oracle.cases("natural", spec=spec, dtype=DTYPE, batch=1, queries=size, keys=size)
        right = oracle.truth(spec.replace(pairing=pairing), case.inputs, want=("out",)).out
        mine = np.asarray(right, dtype=np.float32)
        seconds, found = self.timed(lambda: getattr(oracle, judge)(mine, spec, case.inputs, recipe=DTYPE))
        if found.status != status:
            raise ValueError(f"the oracle: got {found.status}, expected {status}\n{found}")
        return {"seconds": seconds, **self.peak()}
