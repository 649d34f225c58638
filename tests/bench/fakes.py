"""A side on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.bench.inputs import Ids
from refdiff.bench.sides import FloatArray, Settings, Side


class FakeSide(Side):
    """Counts on from the last token: a prompt takes 5 s, each pass 2 s, each product 0.25 s, each training step 3 s.

    `did` holds what has been called; it waits 0.5 s for its device.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings or Settings("somewhere"))
        self.now, self.itemsize = 100.0, 4
        self.clock = lambda: self.now
        self.wait = lambda: self.pass_time(0.5)
        self.did: list[Any] = []

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def open(self, folder: str) -> None:
        self.now += 7
        self.did.append(("open", folder))

    def generate(self, ids: Ids, streamer: Any, *, max_new_tokens: int, **options: Any) -> Ids:
        """Two tokens come a pass where a bias says which they are."""
        self.did.append(("generate", ids, max_new_tokens))
        streamer.put(ids)
        text = ids[:, -1:] + 1 + np.arange(max_new_tokens)
        if bias := options.get("sequence_bias"):
            said = ids[0].tolist()
            for _ in range(max_new_tokens):
                said.append(next(after for *before, after in bias if said[-len(before) :] == before))
            text = np.array([said[-max_new_tokens:]])
        self.now += 5
        streamer.put(text[:, :1])
        together = 2 if bias else 1
        for start in range(1, max_new_tokens, together):
            self.now += 2
            streamer.put(text[:, start : start + together])
        streamer.end()
        return text

    def bind_weights(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
        def multiply() -> Any:
            self.now += 0.25 * len(weights)
            return x @ weights[-1].T

        return multiply

    def trainer(self, folder: str, ids: Ids) -> Callable[[], float]:
        self.did.append(("trainer", ids))

        def step() -> float:
            self.now += 3
            return 1.5

        return step
