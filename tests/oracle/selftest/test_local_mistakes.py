"""Each local mistake is wrong in its place, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import truth
from refdiff.oracle.truth.attention_operands import attention_mask
from tests.oracle.example_inputs import draw, small
from tests.oracle.selftest.local_mistakes import KEYS, PLACES, OfKeys, OfPlace

SPEC = small("hf_diffllama")
X = draw(SPEC, T=40, S=44)
OUT = truth(SPEC, X, want=("out",)).out
KEYS_CHANGED = {
    "eight_rows_lose_eight_keys": 64,
    "every_32nd_row_sees_a_future_key": 2 * SPEC.heads,  # in both sequences of the batch
    "last_row_loses_the_first_key": 1,
    "one_row_loses_its_own_key": 1,
}


@pytest.mark.parametrize("local", PLACES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_is_wrong_in_its_rows_alone(local: OfPlace, seed: int) -> None:
    before = OUT.copy()
    wrong = local(np.random.default_rng(seed), OUT)
    np.testing.assert_array_equal(OUT, before)
    assert wrong.shape == OUT.shape
    rows = np.any((wrong != OUT) | np.isnan(wrong), axis=-1)
    assert rows.sum() == (2 if local.__name__ == "two_rows_swapped" else 1)


@pytest.mark.parametrize("local", KEYS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_sees_other_keys_in_its_rows_alone(local: OfKeys, seed: int) -> None:
    spec, inputs = local(np.random.default_rng(seed), SPEC, X)
    assert "mask" not in X
    shape = (2, SPEC.heads, 40, 44)
    right, wrong = (np.broadcast_to(attention_mask(s, x), shape) for s, x in ((SPEC, X), (spec, inputs)))
    batch = 1 if inputs["mask"].shape[0] == 1 else 2
    assert (right != wrong)[:batch].sum() == KEYS_CHANGED[local.__name__]
    rows = np.any(right != wrong, axis=-1)
    out = truth(spec, inputs, want=("out",)).out
    np.testing.assert_allclose(out[~rows], OUT[~rows], rtol=1e-12)
    assert np.all(np.any(out[rows] != OUT[rows], axis=-1))
