"""The settings of a run, and an estimate of its memory, by which a run that does not fit is refused at the start."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from refdiff.backends import backend_for
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.weights.names import count_parameters, parameter_shapes
from refdiff.model.weights.precision import NBYTES
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


def needed_memory(
    config: DiffLlamaConfig, settings: Settings, dtype: str = "float32", threads: int | None = None
) -> tuple[int, int]:
    """Estimate the bytes of a whole run (weights, gradients, optimizer), and those of the tokens of a step.

    This is a lower bound, at the logits and their gradient or in the backward pass of a layer, whichever is larger.
    Intermediate results add up to a quarter. Where a layer is wrapped, all tokens of a step are computed at once, which
    takes more.

    Equation:
        4 P and N (L A + max(2 V, 2 A)) numbers, A = 4 D + (2 H + 2 K) d + 2 F, for P parameters and N tokens
        (sequences × context) that all threads together compute at a time; in v2 3 H; 3 P with Muon, which keeps one
        matrix instead of two, and P more where gradients are accumulated; 16 bytes for each token of a pass
    """
    size = NBYTES[dtype]
    parameters = count_parameters(parameter_shapes(config, "DiffLlamaForCausalLM").values())
    copies = (4 if settings.optimizer == "adamw" else 3) + (settings.accumulate > 1)
    sequences = settings.batch_size // settings.accumulate
    tokens = backend_for(np, threads=threads).sequences_at_once(sequences, settings.context) * settings.context
    heads = (config.num_query_heads + config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    layer = 4 * config.hidden_size + heads + 2 * config.intermediate_size
    widest = max(2 * config.vocab_size, 2 * layer)
    ids_and_positions = 16 * sequences * settings.context
    return copies * parameters * size, tokens * (config.num_hidden_layers * layer + widest) * size + ids_and_positions
