"""A side on a clock that the test turns, and a report as a whole run gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.bench.inputs import Bias, Ids
from refdiff.bench.side import Arrivals, FloatArray, Settings, Side


class FakeSide(Side):
    """Counts on from the last token; each start takes 5 s, each step 2 s, each product 0.25 s, each training step 3 s.

    `did` holds what has been called; its synchronisation takes 0.5 s before and after.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings or Settings("somewhere"))
        self.now = 100.0
        self.clock = lambda: self.now
        self.did: list[Any] = []
        self.vocab_size, self.itemsize = 11, 4

    def open(self, folder: str) -> None:
        self.now += 7
        self.did.append(("open", folder))

    def start(self, ids: Ids, new: int) -> Ids:
        self.now += 5
        self.did.append(("start", ids, new))
        return ids[:, -1]

    def step(self, tokens: Ids) -> Ids:
        self.now += 2
        self.did.append(("step", tokens))
        return (tokens + 1) % self.vocab_size

    def rewind(self, length: int) -> None:
        self.did.append(("rewind", length))

    def by_lookup(self, ids: Ids, new: int, bias: Bias, streamer: Arrivals) -> Ids:
        """Reads the prompt in 5 s, gives the first token, and after 2 s each two more."""
        self.did.append(("lookup", ids))
        streamer.put(ids)
        said = ids[0].tolist()
        for _ in range(new):
            said.append(next(after for *before, after in bias if said[-len(before) :] == before))
        text = np.array(said[-new:])
        self.now += 5
        streamer.put(text[:1])
        for start in range(1, new, 2):
            self.now += 2
            streamer.put(text[start : start + 2])
        streamer.end()
        return text[None]

    def hold(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
        def multiply() -> Any:
            self.now += 0.25 * len(weights)
            return x @ weights[-1].T

        return multiply

    def trainer(self, folder: str, ids: Ids) -> Callable[[], float]:
        self.did.append(("trainer", folder, ids))

        def step() -> float:
            self.now += 3
            return 1.5

        return step

    def sync(self) -> None:
        self.now += 0.5


def report(**changes: Any) -> dict[str, Any]:
    """What a run of two rows, one of them beside two others, writes as JSON."""
    product = {
        "row": "product:8",
        "title": "product, 8 tokens",
        "unit": "GB/s",
        "sides": {
            name: {"seconds": [s, s], "rate": {"median": rate, "low": rate, "high": rate}}
            for name, s, rate in (("refdiff", 0.5, 20.0), ("transformers", 1.0, 10.0), ("onnxruntime", 0.25, 40.0))
        },
        "against": {
            "transformers": {"ratio": {"median": 2.0, "low": 1.5, "high": 2.5}, "difference": None},
            "onnxruntime": {"ratio": {"median": 0.5, "low": 0.5, "high": 0.5}, "difference": None},
        },
        "ceiling": {
            "kind": "gemv",
            "rates": [25e9, 25e9],
            "share": {"refdiff": {"median": 0.8, "low": 0.7, "high": 0.9}},
            "doubtful": [],
        },
        "error": None,
    }
    cold = {
        "row": "cold",
        "title": "start to first token",
        "unit": "s",
        "sides": {
            "refdiff": {"seconds": [0.5, 0.5], "rate": {"median": 0.5, "low": 0.5, "high": 0.5}},
            "transformers": {"seconds": [4.0, 4.0], "rate": {"median": 4.0, "low": 4.0, "high": 4.0}},
        },
        "against": {"transformers": {"ratio": {"median": 8.0, "low": 7.0, "high": 9.0}, "difference": None}},
        "ceiling": None,
        "error": None,
    }
    return {
        "machine": {
            "processor": "A Processor",
            "cores": 2,
            "threads": 1,
            "memory_bytes": 25_000_000_000,
            "system": "Linux x86_64",
            "blas": "openblas 0.3",
            "versions": {"refdiff": "1.2.3", "numpy": "2.4.6"},
        },
        "model": {"name": "small", "parameters": 1234567},
        "settings": {
            "dtype": "float32",
            "backend": "numpy",
            "pairs": 2,
            "decoded_tokens": 4,
            "looked_up_tokens": 20,
            "training_batch": [16, 256],
        },
        "rows": [cold, product],
        **changes,
    }
