"""Other strides, the same numbers, and the same truth."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import truth
from refdiff.oracle.cases.structure import relaid
from tests.oracle.example_inputs import draw, small

SPEC = small("hf_diffllama")


@pytest.mark.parametrize("layout", ["contiguous", "tokens before heads", "width first", "padded width"])
def test_the_same_numbers_and_truth(layout: str) -> None:
    inputs = draw(SPEC, dtype=np.float32)
    other = relaid(inputs, layout)
    assert all(np.array_equal(x, other[n]) for n, x in inputs.items())
    assert np.array_equal(truth(SPEC, inputs).out, truth(SPEC, other).out)
    k = other["k"]
    expected = {
        "contiguous": k.flags.c_contiguous,
        "tokens before heads": k.strides[2] > k.strides[1],
        "width first": k.strides[3] == max(k.strides),
        "padded width": k.strides[2] == 4 * (6 + 3),
    }
    assert expected[layout]
