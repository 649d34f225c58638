"""Training on a device: array-api-strict's second, which converts nothing unasked, or CuPy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.arrays import to_numpy
from refdiff.model.weights import flatten
from refdiff.training.train import Trainer
from tests.layers.places import Place

Start = Callable[..., Trainer]


@pytest.mark.parametrize(
    ("wiring", "optimizer"), [("hf", "adamw"), ("paper", "muon"), ("v2", "adamw"), ("none", "muon")]
)
def test_it_trains_there_as_here_and_goes_on(away: Place, start: Start, wiring: str, optimizer: str) -> None:
    options: dict[str, Any] = {"wiring": wiring, "optimizer": optimizer, "dtype": "float64", "steps": 3, "clip": 0.1}
    here, there = start("here", **options), start("there", **options, **away.choice)
    records: list[dict[str, Any]] = []
    here.run()
    there.run(records.append)
    assert [record["step"] for record in records] == [1, 2, 3]
    resumed = Trainer.resume(there.out, **away.choice)
    for trainer in (there, resumed):
        for name, x in flatten(trainer.model.params).items():
            assert away.holds(x)
            np.testing.assert_allclose(
                to_numpy(x), flatten(here.model.params)[name], rtol=1e-9, atol=1e-12, err_msg=name
            )
    assert resumed.step == 3
    for name, x in resumed._optimizer.state().items():
        np.testing.assert_array_equal(to_numpy(x), to_numpy(there._optimizer.state()[name]), err_msg=name)
