"""Settings fit together; the estimate of memory is a little below what training holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from refdiff.training.settings import Settings


def test_settings_that_do_not_fit_together() -> None:
    for wrong, message in (
        ({"batch_size": 4, "accumulate": 3}, "batch_size: got 4, expected a multiple of accumulate 3"),
        ({"optimizer": "sgd"}, "one of adamw, muon"),
        ({"schedule": "linear"}, "one of cosine, constant"),
        ({"context": 1}, "context: got 1"),
        ({"batch_size": 0}, "batch_size: got 0, expected 1 or more"),
        ({"learning_rate": -1e-3}, "learning_rate: got -0.001, expected a number above 0"),
        ({"grad_clip": float("nan")}, "grad_clip: got nan, expected a number above 0"),
        ({"save_every": -1}, "save_every: got -1, expected 0 or more"),
        ({"weight_decay": -0.1}, "weight_decay: got -0.1, expected 0 or more"),
        ({"learning_rate": "high"}, "learning_rate: got 'high', expected type float"),
        ({"max_steps": 2.5}, "max_steps: got 2.5, expected type int"),
        ({"seed": True}, "seed: got True, expected type int"),
    ):
        with pytest.raises(ValueError, match=message):
            Settings(**wrong)
    assert Settings(learning_rate=1).learning_rate == 1


def test_names_of_version_0_1_are_accepted() -> None:
    old: dict[str, Any] = {"steps": 5, "batch": 4, "rate": 0.1, "warmup": 3, "decay": 0.2, "clip": 0.5}
    settings = Settings(**old)
    assert settings == Settings(
        max_steps=5, batch_size=4, learning_rate=0.1, warmup_steps=3, weight_decay=0.2, grad_clip=0.5
    )
    assert {name: getattr(settings, name) for name in old} == old
    change: dict[str, Any] = {"steps": 6}
    assert replace(settings, **change).max_steps == 6
