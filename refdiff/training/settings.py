"""What decides the steps of a run: sizes of a step, optimizer and its course, and what is done now and then."""

from __future__ import annotations

from dataclasses import dataclass, fields

from refdiff.training.adamw import AdamW
from refdiff.training.muon import Muon
from refdiff.training.schedule import SCHEDULES

OPTIMIZERS = {"adamw": AdamW, "muon": Muon}
CHANGEABLE = ("steps", "rate", "warmup", "clip", "evaluate_every", "save_every", "sample_every", "prompt")
"""Settings that a resumed run may change."""


@dataclass(frozen=True)
class Settings:
    """What decides the steps of a run.

    steps, batch (sequences a step), context (tokens a sequence), accumulate (parts that a step is computed in);
    optimizer, rate (the peak learning rate), schedule, warmup (steps), decay, clip (the largest gradient norm); seed;
    evaluate_every, save_every, sample_every (steps; 0 = only at the end), prompt of the samples.

    Raises:
        ValueError: one is of another type or out of its range, or two do not fit together.
    """

    steps: int = 1000
    batch: int = 16
    context: int = 256
    accumulate: int = 1
    optimizer: str = "adamw"
    rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 50
    decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int = 200
    save_every: int = 200
    sample_every: int = 200
    prompt: str = ""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, kind = getattr(self, entry.name), type(entry.default)
            if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"{entry.name}: got {value!r}, expected type {kind.__name__}")
        for name in ("steps", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.batch % self.accumulate:
            raise ValueError(f"batch: got {self.batch}, expected a multiple of accumulate {self.accumulate}")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if self.context < 2:
            raise ValueError(f"context: got {self.context}, expected 2 or more: one token to see, one to predict")
