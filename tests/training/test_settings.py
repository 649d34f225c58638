"""Settings are of their types, in their ranges, and fit together."""

from __future__ import annotations

import pytest

from refdiff.training.settings import Settings


def test_settings_that_do_not_fit_together() -> None:
    for wrong, message in (
        ({"batch": 4, "accumulate": 3}, "batch is 4, but must be a multiple of accumulate 3"),
        ({"optimizer": "sgd"}, "one of adamw, muon"),
        ({"schedule": "linear"}, "one of cosine, constant"),
        ({"context": 1}, "context is 1"),
        ({"batch": 0}, "batch is 0, but must be 1 or more"),
        ({"rate": "high"}, "rate is 'high', but must be of type float"),
        ({"steps": 2.5}, "steps is 2.5, but must be of type int"),
        ({"seed": True}, "seed is True, but must be of type int"),
    ):
        with pytest.raises(ValueError, match=message):
            Settings(**wrong)
    assert Settings(rate=1).rate == 1
