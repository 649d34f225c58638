"""Structures: lengths of every axis, tables that fit them, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.truth.attention_mask import attention_mask
from tests.oracle.example_inputs import small

HF = small("hf_diffllama")


def test_sizes() -> None:
    assert Structure(3, 5, 7).sizes == "3x5x7"
    assert Structure(3, 5, 7, hidden=0).sizes == "layer-3x5x7"
    assert Structure(packed=((2, 3), (0, 9))).sizes == "packed-2x2x9"
    assert Structure(packed=((2, 2), (7, 7)), hidden=9).sizes == "layer-packed-2x7x7"
    assert Structure(pages=((1, 3), (4, 9), (1, 1))).sizes == "paged-3x4x9"
    assert Structure(packed=()).sizes == "packed-0x0x0"


def test_every_page_belongs_to_one_sequence_and_two_to_none() -> None:
    found = Structure(pages=((1, 9), (1, 0), (1, 4)), page=4).tables(np.random.default_rng(0))
    used = [*found["block_table"][0], found["block_table"][2][0]]
    assert len(set(used)) == 4
    assert max(used) < 6
    assert found["block_table"][1][0] not in used
    assert used != sorted(used)
    assert "cu_seqlens_q" in Structure(pages=((2, 9), (1, 4))).tables(np.random.default_rng(0))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_one_side_and_differs(side: str) -> None:
    mask = Structure(3, 4, 6, padding=side).tables(np.random.default_rng(0))["key_mask"]
    assert sorted(mask.sum(axis=1).tolist()) == [4, 5, 6]
    steps = np.diff(mask.astype(int), axis=1)
    assert (steps >= 0).all() if side == "left" else (steps <= 0).all()
    assert not Structure(3, 4, 6).tables(np.random.default_rng(0))


def test_a_window_as_a_mask_is_the_window_of_a_spec() -> None:
    for causal in ("bottom_right", "top_left", "none"):
        spec = HF.replace(causal=causal)
        inputs = {"q": np.zeros((1, 12, 3, 6)), "k": np.zeros((1, 4, 9, 6))}
        (mask,) = Structure(1, 3, 9, window=4).masks(spec).values()
        same = attention_mask(spec, {**inputs, "mask": mask})
        assert np.array_equal(same, attention_mask(spec.replace(window=4), inputs))


def test_positions_with_a_hole() -> None:
    found = Structure(1, 2, 66, hole=10).masks(HF)
    assert found["k_positions"][0, 62:].tolist() == [62, 63, 74, 75]
    assert found["q_positions"].tolist() == [[74, 75]]
    assert not Structure(1, 2, 66, hole=10).masks(HF.replace(rope="none"))


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
