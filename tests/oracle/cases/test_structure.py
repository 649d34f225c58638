"""Other strides, the same numbers, and the same truth."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import truth
from refdiff.oracle.cases.structure import relaid
from tests.oracle.example_inputs import draw, small

SPEC = small("hf_diffllama")


@pytest.mark.parametrize(
    "layout", ["contiguous", "tokens before heads", "width first", "padded width", "offset", "backwards"]
)
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
        "offset": k.base is not None and k.ctypes.data % 8 == 4,
        "backwards": k.strides[2] < 0,
    }
    assert expected[layout]


def test_one_for_all_has_a_stride_of_nothing() -> None:
    other = relaid(draw(SPEC), "one for all")
    assert other["k"].strides[0] == other["v"].strides[0] == 0
    assert other["q"].strides[0] > 0
    assert np.array_equal(other["k"][1], other["k"][0])
