"""Structures that are refused; and other strides, the same numbers, and the same truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import truth
from refdiff.oracle.cases.structure import LAYOUTS, Structure, relaid
from tests.oracle.example_inputs import draw, small


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queries": -1}, "lengths must be 0 or more"),
        ({"packed": ((1, -2),)}, "lengths must be 0 or more"),
        ({"pages": ((1, 2),), "page": 0}, "a page holds 1 key or more"),
        ({"padding": "both"}, "padding: got 'both', expected one of 'none', 'left', 'right'"),
        ({"packed": (), "pages": ()}, "give one of them"),
        ({"hidden": 4, "pages": ((1, 2),)}, "hidden must be None"),
        ({"window": -1}, "lengths must be 0 or more"),
        ({"window": 3, "packed": ((1, 2),)}, "for dense q, k and v alone"),
        ({"bias": True, "pages": ((1, 2),)}, "for dense q, k and v alone"),
        ({"hole": 3, "hidden": 4}, "for dense q, k and v alone"),
    ],
)
def test_impossible(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Structure(**fields)


SPEC = small("hf_diffllama")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one for all"])
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


def test_an_unknown_layout() -> None:
    with pytest.raises(ValueError, match="no layout is called 'sparse': there are 'contiguous'"):
        relaid(draw(SPEC), "sparse")
