"""Inputs misread: each deviation has an input that it fits, and says nothing of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.resolve import small_spec
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.in_inputs import INPUT_DEVIATIONS
from refdiff.oracle.mistakes.kernel import deviated, output
from refdiff.oracle.mistakes.listed import KINDS, deviations, draw_probes
from refdiff.oracle.mistakes.rare import RARE_DEVIATIONS
from refdiff.oracle.strategies import Structure
from refdiff.oracle.strategies import draw as draw_values
from tests.oracle.example_inputs import draw, small

HF = small("hf_diffllama")
GATED = small("hf_diffllama", gate="sigmoid")
QK_NORMED = small("hf_diffllama", qk_norm="rms", qk_norm_weight=True)
GIVEN: dict[str, dict[str, Any]] = {
    "mask_ignored": {"mask": np.tri(5, 7, 2, dtype=np.bool_)[:, ::-1]},
    **{name: {"bias": np.arange(7.0)} for name in ("bias_ignored", "bias_in_base_2", "bias_scaled")},
    "positions_ignored": {"q_positions": np.array([[9, 3, 5, 2, 8]])},
}
"""Inputs that no probe has."""
BY_NAME = {d.name: d for d in (*INPUT_DEVIATIONS, *RARE_DEVIATIONS) if d in INPUT_DEVIATIONS or d.name in GIVEN}
SPECS = {
    "gate_read_as_tokens_first": GATED,
    "qk_norm_weights_swapped": QK_NORMED,
    "lambda_read_as_heads_first": small("diff_v2"),
    **{name: small("hf_diffllama", sinks=True) for name in BY_NAME if name.startswith("sinks_")},
}

NOTHING_MISREAD = {
    "gate_read_as_tokens_first": GATED,
    "keys_and_values_swapped": small("ms_v1"),  # of other shapes
    **dict.fromkeys(("query_positions_one_low", "query_positions_one_high"), small("timm")),  # no RoPE
}


@pytest.mark.parametrize("name", BY_NAME)
def test_is_another_output_of_the_same_shape_on_some_input(name: str) -> None:
    spec = SPECS.get(name, HF)
    changed = 0
    for inputs in ({**draw(spec), **GIVEN.get(name, {})}, *(x for kind in KINDS for x in draw_probes(spec, kind))):
        problem = deviated(spec, inputs, [BY_NAME[name]])
        if problem is not None:
            right, wrong = output(Kernel(spec, inputs)), output(problem)
            assert wrong.shape == right.shape
            changed += not np.allclose(wrong, right, equal_nan=True)
    assert changed


@pytest.mark.parametrize(
    ("structure", "positions"),
    [
        (Structure(queries=3, keys=5), [[2, 3, 4]]),
        (Structure(packed=((2, 4), (3, 3))), [[2, 3, 0, 1, 2]]),
        (Structure(pages=((2, 7), (2, 9))), [[5, 6], [7, 8]]),
        (Structure(pages=((2, 7), (3, 9))), [[5, 6, 6, 7, 8]]),
        (Structure(queries=3, keys=5, hidden=11), [[2, 3, 4]]),
    ],
    ids=["dense", "packed", "paged", "packed and paged", "layer"],
)
@pytest.mark.parametrize(("name", "by"), [("query_positions_one_low", -1), ("query_positions_one_high", 1)])
def test_queries_one_position_off(structure: Structure, positions: list[list[int]], name: str, by: int) -> None:
    inputs = draw_values(HF, structure, "discriminating", 3)
    problem = deviated(HF, inputs, [BY_NAME[name]])
    assert problem is not None
    assert np.array_equal(
        problem.inputs["q_positions"], np.broadcast_to(positions, problem.inputs["q_positions"].shape) + by
    )


@pytest.mark.parametrize("packed", [False, True])
def test_positions_of_longest_sequence(packed: bool) -> None:
    """As if the queries of every sequence were the last of the longest; that one is right."""
    inputs = draw_values(HF, Structure(pages=((2, 7), (2 + packed, 9))), "discriminating", 3)
    problem = deviated(HF, inputs, [BY_NAME["positions_of_longest_sequence"]])
    assert problem is not None
    right, wrong = output(Kernel(HF, inputs)), output(problem)
    first, second = ((0, slice(2)), (0, slice(2, None))) if packed else ((0, slice(None)), (1, slice(None)))
    assert np.array_equal(wrong[second[0]][:, second[1]], right[second[0]][:, second[1]])
    assert not np.allclose(wrong[first[0]][:, first[1]], right[first[0]][:, first[1]])


@pytest.mark.parametrize("name", BY_NAME)
def test_where_nothing_is_to_be_misread_the_output_is_right_or_there_is_no_such_kernel(name: str) -> None:
    spec = NOTHING_MISREAD.get(name, HF)
    inputs = draw(spec)
    problem = deviated(spec, inputs, [BY_NAME[name]])
    if name.endswith("_read_as_tokens_first"):  # a lone token has no other order
        inputs = draw(spec, T=1, S=1)
        problem = deviated(spec, inputs, [BY_NAME[name]])
    unread = name.endswith(("_ignored", "_read_as_tokens_first")) or name == "padding_visible"
    assert (problem is not None) == unread
    if problem is not None:
        assert np.array_equal(output(problem), output(Kernel(spec, inputs)))


@pytest.mark.parametrize("structure", [Structure(0, 3, 5), Structure(packed=((0, 1), (0, 4)))])
def test_no_deviation_fails_on_inputs_without_queries(structure: Structure) -> None:
    spec = small_spec("gda")
    x = draw_values(spec, structure, "natural", 1)
    for d in (*deviations(spec, kind_of(x)), *RARE_DEVIATIONS):
        out = output(deviated(spec, x, [d]))
        assert out is None or out.size == 0
