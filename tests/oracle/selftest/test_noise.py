"""What is identifiable, by hand; correct kernels' log-sum-exps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refdiff.oracle import truth
from refdiff.oracle.rounding.evaluation_order import DRAWS, HELD_OUT, MEMBERS
from tests.oracle.selftest.noise import AT_RANDOM, ORDERS, Noise, noise
from tests.oracle.selftest.one_case import Trial
from tests.oracle.selftest.settings import settings

Y = np.asarray([[3.0, -4.0], [1.0, 1.0]])
NOISE = Noise(np.asarray([0.1, 0.2]), np.asarray([0.15, 0.2]), 0.01)


def test_a_row_a_number_or_the_scale_whichever_is_most() -> None:
    assert NOISE.times(Y, Y) == 0
    row = Y + np.asarray([[0.1, 0.1], [0.0, 0.0]])
    assert NOISE.times(row, Y) == pytest.approx(1.0)
    number = Y + np.asarray([[0.0, 0.0], [0.0, 0.6]])
    assert NOISE.times(number, Y) == pytest.approx(3.0), "0.6 / 0.2, where the row is 0.42 / 0.2"
    assert NOISE.times(1.05 * Y, Y) == pytest.approx(5.0)
    wrong = Y.copy()
    wrong[0, 0] = np.nan
    assert NOISE.times(wrong, Y) == np.inf


def test_a_sum_is_judged_number_by_number() -> None:
    of_sum = Noise(None, np.asarray([0.1, 1.0]), 0.0)
    assert of_sum.times(np.asarray([1.3, 7.0]), np.asarray([1.0, 5.0])) == pytest.approx(3.0)


def test_noise_is_the_largest_error_of_any_run_and_no_less_than_a_rounding() -> None:
    one, two = Y + np.asarray([[0.3, 0.0], [0.0, 0.0]]), Y - [[0.0, 0.1], [0.02, 0.02]]
    found = noise(Y, [one, two], "float16", by_rows=True)
    np.testing.assert_allclose(found.rows, [0.3 / np.sqrt(2), 0.02])
    np.testing.assert_allclose(found.numbers, [0.3, 0.02])
    assert found.scale == pytest.approx(0.3 * 3 / 27, rel=1e-3)
    exact = noise(Y, [Y, Y], "float16", by_rows=True)
    np.testing.assert_allclose(exact.rows, 2.0**-11 / np.sqrt(12) * np.sqrt(np.mean(Y**2, axis=-1)), rtol=1e-3)
    lost = Y.copy()
    lost[1] = np.nan
    np.testing.assert_array_equal(
        noise(Y, [lost, one], "float16", by_rows=True).rows, noise(Y, [one], "float16", by_rows=True).rows
    )
    assert noise(Y, [one, two], "float16", by_rows=False).numbers[1, 1] == pytest.approx(0.02)


def test_no_budget_is_made_of_these_kernels() -> None:
    assert ORDERS == HELD_OUT
    assert not {*ORDERS, *AT_RANDOM} & {*MEMBERS, *DRAWS}
    assert not {order.noise for order in AT_RANDOM} & {order.noise for order in (*DRAWS, *MEMBERS)}


@pytest.mark.parametrize("base", [pytest.param("e", marks=pytest.mark.slow), "2"])
def test_log_sums_are_the_truth_but_for_roundings(base: str) -> None:
    main = settings(3)[0]
    setting = replace(main, spec=main.spec.replace(lse_base=base))
    trial = Trial(setting, 3, "bfloat16", "natural")
    exact = truth(setting.spec, trial.budget.inputs, want=("lse1", "lse2"))
    for order in (*ORDERS, *AT_RANDOM):
        found = trial.log_sums(trial.recipe, order)
        for name, y in (("lse1", exact.lse1), ("lse2", exact.lse2)):
            assert found[name].shape == y.shape
            assert np.array_equal(found[name], found[name].astype(np.float32))
            assert 0 < np.abs(found[name] - y).max() < 0.05
