"""The settings of a run."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from refdiff.training.adamw import AdamW
from refdiff.training.muon import Muon
from refdiff.training.schedule import SCHEDULES

OPTIMIZERS = {"adamw": AdamW, "muon": Muon}
CHANGEABLE = (
    "max_steps", "learning_rate", "warmup_steps", "grad_clip", "evaluate_every", "save_every", "sample_every", "prompt",
)  # fmt: skip
"""Settings that a resumed run may change."""
OLD_NAMES = {
    "steps": "max_steps", "batch": "batch_size", "rate": "learning_rate", "warmup": "warmup_steps",
    "decay": "weight_decay", "clip": "grad_clip",
}  # fmt: skip
"""Names of settings in version 0.1, which `Settings` still accepts, → their names."""


def current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with each old name replaced; where both names are given, the value of the old one counts."""
    kept = {name: value for name, value in settings.items() if name not in OLD_NAMES}
    return kept | {OLD_NAMES[name]: value for name, value in settings.items() if name in OLD_NAMES}


def _accept_old_names(kind: type[Settings]) -> type[Settings]:
    """Let the old names be keyword arguments and attributes too."""
    init: Any = kind.__init__

    @functools.wraps(init)
    def renaming_init(self: Settings, *args: Any, **given: Any) -> None:
        init(self, *args, **current_names(given))

    kind.__init__ = renaming_init  # type: ignore[method-assign]
    for old, name in OLD_NAMES.items():
        setattr(kind, old, property(operator.attrgetter(name)))
    return kind


@_accept_old_names
@dataclass(frozen=True)
class Settings:
    """The settings that decide the steps of a run.

    max_steps, batch_size (sequences a step), context (tokens a sequence), accumulate (parts that a step is computed
    in); optimizer, learning_rate (the peak), schedule, warmup_steps, weight_decay, grad_clip (the largest gradient
    norm); seed; evaluate_every, save_every, sample_every (steps; 0 = only at the end), prompt of the samples.

    The names of version 0.1 are accepted too: steps, batch, rate, warmup, decay, clip.

    Raises:
        ValueError: one is of another type or out of its range, or two do not fit together.
    """

    max_steps: int = 1000
    batch_size: int = 16
    context: int = 256
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 50
    weight_decay: float = 0.1
    grad_clip: float = 1.0
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
        for name in ("max_steps", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        for name in ("learning_rate", "grad_clip"):
            if not getattr(self, name) > 0:  # nor NaN
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a number above 0")
        for name in ("warmup_steps", "weight_decay", "seed", "evaluate_every", "save_every", "sample_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size: got {self.batch_size}, expected a multiple of accumulate {self.accumulate}")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if self.context < 2:
            raise ValueError(f"context: got {self.context}, expected 2 or more: one token to see, one to predict")
