"""Each local mistake is wrong in its place, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.selftest.local_mistakes import LOCAL, OF_GRADIENTS, Local
from refdiff.oracle.truth import truth
from tests.oracle.inputs import draw, small

SPEC = small("hf_diffllama")
X = draw(SPEC, T=40, S=44)
OUT = truth(SPEC, X, want=("out",)).out
ROWS = {
    "eight_rows_lose_eight_keys": 16,  # in both sequences of the batch
    "every_32nd_row_sees_a_future_key": 2 * SPEC.heads,
    "last_row_loses_the_first_key": 2,
    "one_row_loses_its_own_key": 2,
    "two_rows_swapped": 2,
}


@pytest.mark.parametrize("local", LOCAL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_is_wrong_in_its_rows_alone(local: Local, seed: int) -> None:
    before = OUT.copy()
    wrong = local(np.random.default_rng(seed), SPEC, X, OUT)
    np.testing.assert_array_equal(OUT, before)
    assert wrong.shape == OUT.shape
    rows = np.any((wrong != OUT) | np.isnan(wrong), axis=-1)
    assert rows.sum() == ROWS.get(local.__name__, 1)


def test_there_are_more_than_ten_and_gradients_need_no_truth() -> None:
    assert len(LOCAL) >= 10
    assert len({f.__name__ for f in LOCAL}) == len(LOCAL)
    for local in OF_GRADIENTS:
        assert local(np.random.default_rng(0), SPEC, {}, OUT).shape == OUT.shape
