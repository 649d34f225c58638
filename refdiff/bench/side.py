"""One side of a comparison, in the process that is measured: a clock, and the requests that it answers.

What is measured is written once, here, out of a few steps that each library does in its own way, so that all sides have
the same inputs and the clock runs over the same work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refdiff.bench.inputs import Bias, Ids, edited, forcing, random_ids, repetition
from refdiff.bench.machine import Gpu, own_memory, peak_memory
from refdiff.model.config import DiffLlamaConfig

CACHES = 2**30
"""Bytes of weights that a product or a ceiling goes through: so much more than caches hold that they do not help."""

WEIGHT = 2048, 8192
"""Outputs and inputs of the weights of `product`."""

LOOKUP_PROMPT, LOOKED_UP = 256, 10
"""Tokens of the prompt of `lookup`, and prompt_lookup_num_tokens of every side."""

FloatArray = NDArray[np.float32]
Answer = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is measured, and how; every side is told.

    folder: the checkpoint, or None where no row needs one. backend: refdiff's. against: the sides beside refdiff.
    pairs: rounds that count. steps: tokens decoded at a time. looked_up: tokens of prompt lookup after the first.
    least: seconds that products and ceilings are repeated. rest: seconds before each side's turn, so that the threads
    of the one before it fall asleep. batch and context: of a training step.
    """

    folder: str | None = None
    threads: int = 1
    dtype: str = "float32"
    backend: str = "numpy"
    against: tuple[str, ...] = ()
    pairs: int = 5
    steps: int = 16
    looked_up: int = 128
    least: float = 0.3
    rest: float = 0.3
    batch: int = 16
    context: int = 256


class Arrivals:
    """A streamer of either library: when the tokens of each pass through the model came, and how many they were."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: Any) -> None:
        """Note the prompt, then what each pass gave."""
        self.times.append(self._clock())
        self.counts.append(np.asarray(value).size)

    def end(self) -> None:
        """Do nothing."""


class Side:
    """A library, measured: a request is a method from `prepare` to `train`, and its answer a dict that JSON can hold.

    A process serves one row: what its first request makes (a context, a product), later ones use. `seconds` is the time
    of the work alone; `tokens`, `loss` and `sample` are what it gave, by which the parent sees that all sides did the
    same.
    """

    # The steps of a library. One without a model has `hold` alone.
    open: Callable[[str], None]  # open the checkpoint in this folder, and set `vocab_size` and `itemsize`
    start: Callable[[Ids, int], Ids]  # (B, T) into a new cache → the next token of each (B,), the first of so many
    step: Callable[[Ids], Ids]  # one more token of each (B,) → the next ones
    rewind: Callable[[int], None]  # forget all tokens after the first so many
    by_lookup: Callable[[Ids, int, Bias, Arrivals], Ids]  # (1, T) → so many new tokens, guessed from the prompt
    hold: Callable[[list[FloatArray], FloatArray], Callable[[], Any]]  # → x weightᵀ of each weight; gives the last
    trainer: Callable[[str, Ids], Callable[[], float]]  # → one step on (B, T), gives the loss before it

    clock: Callable[[], float] = staticmethod(time.perf_counter)
    gpu: Gpu | None = None  # the device that it works on
    vocab_size: int
    itemsize: int  # bytes of a number in the matrices as they lie in memory
    sparing: ClassVar[bool] = False  # whether a prompt's last layer is computed for its last token alone

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._first: Ids | None = None  # the tokens after the context that is in the cache
        self._repeated: Callable[[], Any] | None = None  # a product or a training step, made once

    def prepare(self) -> Answer:
        """Find the device or import what the work needs, untimed; raise `UnavailableError` where that is not there."""
        if self.settings.backend == "cupy":
            self.gpu = Gpu.from_cupy()
        return {}

    def peak(self) -> Answer:
        """The most memory that this process has held, and what of it is not mapped from files now; or the device's."""
        if self.gpu is not None:
            return {"bytes": self.gpu.held()}
        return {"bytes": peak_memory(), "own_bytes": own_memory()}

    def load(self) -> Answer:
        """Open the checkpoint."""
        return {"seconds": self.timed(lambda: self.open(str(self.settings.folder)))[0]}

    def prefill(self, size: int, batch: int) -> Answer:
        """Read prompts of `size` tokens."""
        ids = random_ids(batch, size, self.vocab_size)
        seconds, tokens = self.timed(lambda: self.start(ids, 1))
        return {"seconds": seconds, "sparing": self.sparing, "tokens": tokens.tolist()}

    def decode(self, size: int, batch: int, steps: int | None = None) -> Answer:
        """Decode tokens after a context of `size`, which is read once and kept, not timed."""
        most = self.settings.steps
        if self._first is None:
            self._first = self.start(random_ids(batch, size, self.vocab_size), 1 + most)
        else:
            self.rewind(size)
        made = [self._first]

        def decoded() -> Ids:
            for _ in range(steps or most):
                made.append(self.step(made[-1]))
            return np.stack(made, axis=1)

        seconds, tokens = self.timed(decoded)
        return {"seconds": seconds, "itemsize": self.itemsize, "tokens": tokens.tolist()}

    def lookup(self, steps: int | None = None) -> Answer:
        """Continue a prompt with itself."""
        return self._looked_up(repetition, steps)

    def edit(self, steps: int | None = None) -> Answer:
        """Continue a program with an edit of it."""
        return self._looked_up(edited, steps)

    def _looked_up(self, make: Callable[[int, int, int], tuple[Ids, Ids]], steps: int | None) -> Answer:
        """Time all tokens after the first.

        Random weights repeat nothing of themselves: a bias makes each token follow what it is to follow. The prompt
        ends in a token that is nowhere else in it, so that nothing is guessed before the first new one.
        """
        ids, text = make(LOOKUP_PROMPT, (steps or self.settings.looked_up) + 1, self.vocab_size)
        arrivals = Arrivals(self.clock)
        self.sync()
        made = self.by_lookup(ids, len(text), forcing(ids[0], text), arrivals)
        self.sync()
        seconds = self.clock() - arrivals.times[1]
        if not np.array_equal(made[0], text) or arrivals.counts[1] != 1:
            raise ValueError(
                f"lookup: {arrivals.counts[1]} tokens came first and not one, or the text is not what the bias forces"
            )
        return {"seconds": seconds, "passes": len(arrivals.times) - 2, "tokens": made.tolist()}

    def memory(self, size: int, batch: int) -> Answer:
        """Open, read and decode, and return the most memory that this took; a request to a new process."""
        self.load()
        tokens = self.decode(size, batch)["tokens"]
        return {**self.peak(), "tokens": tokens}

    def product(self, size: int, shape: tuple[int, int] = WEIGHT) -> Answer:
        """Multiply `size` tokens with weights (outputs, inputs) that no cache holds."""
        count = max(CACHES // (4 * shape[0] * shape[1]), 1)
        if self._repeated is None:
            first = np.random.default_rng(0).standard_normal(shape, np.float32)
            x = np.random.default_rng(1).standard_normal((size, shape[1]), np.float32)
            # All of them different, so that no library keeps equal ones once; the last is the first drawn.
            self._repeated = self.hold([np.roll(first, i, axis=0) for i in reversed(range(count))], x)
        seconds, result = self.repeated(self._repeated, self.settings.least)
        sample = np.asarray(result, np.float64).reshape(size, shape[0])[-1, :: max(shape[0] // 8, 1)]
        return {"seconds": seconds / count, "sample": sample.tolist()}

    def train(self) -> Answer:
        """Make one more training step of the model, always on the same ids."""
        s, folder = self.settings, str(self.settings.folder)
        if self._repeated is None:
            vocab_size = DiffLlamaConfig.from_pretrained(folder).vocab_size
            self._repeated = self.trainer(folder, random_ids(s.batch, s.context, vocab_size))
        seconds, loss = self.timed(self._repeated)
        return {"seconds": seconds, "loss": loss, **self.peak()}

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Return how many seconds the work took, and its result."""
        self.sync()
        started = self.clock()
        result = work()
        self.sync()
        return self.clock() - started, result

    def repeated(self, work: Callable[[], Any], least: float) -> tuple[float, Any]:
        """Do the work again and again for `least` seconds; return how many one time took, and the last result."""

        def times() -> tuple[int, Any]:
            started, count = self.clock(), 0
            while count == 0 or self.clock() - started < least:
                result = work()
                count += 1
            return count, result

        seconds, (count, result) = self.timed(times)
        return seconds / count, result

    def sync(self) -> None:
        """Wait until the device has done all that it was given; a CPU always has."""
        if self.gpu is not None:
            self.gpu.wait()
