"""The numbers of heads say what the layers do, and what no layer has."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.truth.attention_operands import attention_operands
from refdiff.oracle.truth.forward import dense, differences, finished, gated, whole_wiring
from refdiff.oracle.truth.head_indices import head_indices, value_heads
from tests.oracle.example_inputs import draw, small


@pytest.mark.parametrize("name", PRESETS)
def test_the_layers_have_these_wirings(name: str) -> None:
    """Through the layer of the whole wiring, and by the numbers of heads."""
    spec, ops = small(name), ops_for()
    inputs = draw(spec)
    by_numbers = finished(spec, differences(spec, attention_operands(spec, inputs, ops), ops), inputs, ops)
    by_numbers = gated(spec, by_numbers, inputs, ops)
    assert np.abs(dense(spec, inputs, ops) - by_numbers).max() <= 1e-13
    assert (whole_wiring(spec, inputs) is None) == (name in ("ms_v1_naive", "gda", "motif3", "attention"))


def test_by_hand() -> None:
    w = head_indices(small("hf_diffllama", query_heads=8, key_heads=4))
    assert [x.tolist() for x in (w.q1, w.q2, w.k1, w.k2, w.v)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [0, 0, 1, 1], [2, 2, 3, 3], [0, 0, 1, 1],
    ]  # fmt: skip
    w = head_indices(small("ms_v1", query_heads=8, key_heads=4))
    assert [w.q1.tolist(), w.q2.tolist()] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert [w.k1.tolist(), w.k2.tolist(), w.v.tolist()] == [[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 1, 1]]


def test_repeated_keys_are_one_key_for_both_maps() -> None:
    w = head_indices(small("ms_v1_naive", query_heads=8, key_heads=4))
    assert w.k1.tolist() == w.k2.tolist() == [0, 1, 2, 3]


def test_groups_of_signals_and_a_noise() -> None:
    w = head_indices(small("gda", query_heads=8, key_heads=2, ratio=3))
    assert [w.q1.tolist(), w.q2.tolist()] == [[0, 1, 2, 4, 5, 6], [3, 3, 3, 7, 7, 7]]
    w = head_indices(small("gda", query_heads=8, key_heads=2, ratio=3, pairing="halves"))
    assert [w.q1.tolist(), w.q2.tolist()] == [[0, 1, 2, 3, 4, 5], [6, 6, 6, 7, 7, 7]]


def test_tiled_groups() -> None:
    assert head_indices(small("hf_diffllama", group_order="tiled")).v.tolist() == [0, 1, 0, 1, 0, 1]


def test_which_heads_are_joined() -> None:
    parts = {
        name: [p.tolist() for p in value_heads(small(name))] for name in ("hf_diffllama", "motif", "ms_v1", "diff_v2")
    }
    assert parts == {
        "hf_diffllama": [[0, 1], [2, 3]],
        "motif": [[0, 2], [1, 3]],
        "ms_v1": [[0, 1]],
        "diff_v2": [[0, 1, 2]],
    }
