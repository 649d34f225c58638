"""Structures: lengths of every axis, tables that fit them, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.truth.attention_mask import attention_mask
from tests.oracle.example_inputs import small

HF = small("hf_diffllama")


def test_a_window_as_a_mask_is_the_window_of_a_spec() -> None:
    for causal in ("bottom_right", "top_left", "none"):
        spec = HF.replace(causal=causal)
        inputs = {"q": np.zeros((1, 12, 3, 6)), "k": np.zeros((1, 4, 9, 6))}
        (mask,) = Structure(1, 3, 9, window=4).masks(spec).values()
        same = attention_mask(spec, {**inputs, "mask": mask})
        assert np.array_equal(same, attention_mask(spec.replace(window=4), inputs))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queries": -1}, "lengths must be 0 or more"),
        ({"packed": ((1, -2),)}, "lengths must be 0 or more"),
        ({"pages": ((1, 2),), "page": 0}, "a page holds 1 key or more"),
        ({"padding": "both"}, "padding is 'both', but must be one of 'none', 'left', 'right'"),
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
