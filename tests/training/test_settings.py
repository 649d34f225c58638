"""Settings are of their types, in their ranges, and fit together."""

from __future__ import annotations

import pytest

from refdiff.training.settings import Settings


def test_settings_that_do_not_fit_together() -> None:
    for wrong, message in (
        ({"batch": 4, "accumulate": 3}, "batch: got 4, expected a multiple of accumulate 3"),
        ({"optimizer": "sgd"}, "one of adamw, muon"),
        ({"schedule": "linear"}, "one of cosine, constant"),
        ({"context": 1}, "context: got 1"),
        ({"batch": 0}, "batch: got 0, expected 1 or more"),
        ({"rate": "high"}, "rate: got 'high', expected type float"),
        ({"steps": 2.5}, "steps: got 2.5, expected type int"),
        ({"seed": True}, "seed: got True, expected type int"),
    ):
        with pytest.raises(ValueError, match=message):
            Settings(**wrong)
    assert Settings(rate=1).rate == 1
