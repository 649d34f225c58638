"""Legal kernels' log-sum-exps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.truth import truth
from tests.oracle.selftest.legal import log_sums
from tests.oracle.selftest.noise import AT_RANDOM, ORDERS
from tests.oracle.selftest.one_case import Trial
from tests.oracle.selftest.settings import settings


@pytest.mark.parametrize("base", ["e", "2"])
def test_log_sums_are_the_truth_but_for_roundings(base: str) -> None:
    main = settings(3)[0]
    setting = replace(main, spec=main.spec.replace(lse_base=base))
    trial = Trial(setting, 3, Recipe("bfloat16"), "natural")
    exact = truth(setting.spec, trial.budget.inputs, want=("lse1", "lse2"))
    for order in (*ORDERS, *AT_RANDOM):
        found = log_sums(setting, trial.budget.inputs, trial.recipe, order)
        for name, y in (("lse1", exact.lse1), ("lse2", exact.lse2)):
            assert y is not None
            assert found[name].shape == y.shape
            assert np.array_equal(found[name], found[name].astype(np.float32))
            assert 0 < np.abs(found[name] - y).max() < 0.05
