"""The deviations of a spec: complete, each function once, each with a name."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from refdiff.oracle import deviations
from refdiff.oracle.deviations.deviation import deviated, output
from refdiff.oracle.deviations.listed import EVERY, KINDS, kind_of
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes import ROWS
from refdiff.oracle.strategies import Structure, draw
from tests.oracle.deviations.effects import AXES
from tests.oracle.example_inputs import small


@pytest.mark.parametrize("name", ["hf_diffllama", "ms_v1"])
def test_every_axis_has_one(name: str) -> None:
    found = deviations(small(name))
    assert {d.axis for d in found} >= AXES
    assert len(found) >= 60
    if name == "ms_v1":
        assert "affine" in {d.axis for d in found}


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_unique_and_rows_known(kind: str) -> None:
    found = deviations(small("diff_v2"), kind)
    names = [name for d in found for name in (d.name, *d.aliases)]
    assert len(set(names)) == len(names) > 30
    assert all(d.row in ("", *ROWS) for d in found)
    assert len({d.name for d in EVERY}) == len(EVERY)


def test_two_ways_to_write_one_function_are_one_entry() -> None:
    by_name = {d.name: d for d in deviations(small("hf_diffllama"))}
    merged = by_name["scale_left_out"]
    assert merged.aliases == ("out_not_scaled",)
    assert merged.mistake is None  # the field is kept, which can be put together with more
    assert merged.fields is not None
    assert "lambda_not_used" in by_name["heads_without_the_difference"].aliases
    assert "positions_from_one" not in by_name  # no input shows it
    assert "the_other_pairing" in {d.name for d in EVERY}


def test_all_are_different_from_each_other_on_some_input() -> None:
    spec = small("ms_v1")
    probes = [
        draw(spec, Structure(3, 6, 11, padding="left"), "discriminating", 11),
        draw(spec, Structure(2, 8, 8), "tiny_values", 12),
        draw(spec, Structure(2, 6, 4), "discriminating", 13),
    ]
    exact = [as_float64(spec, inputs) for inputs in probes]
    problems = {d: [deviated(spec, inputs, [d]) for inputs in exact] for d in deviations(spec)}
    outs = {d: [None if p is None else output(p) for p in some] for d, some in problems.items()}
    for a, b in combinations(outs, 2):
        assert not all(map(same, outs[a], outs[b])), f"{a} and {b}"


def same(x: np.ndarray | None, y: np.ndarray | None) -> bool:
    there = x is not None and y is not None and x.shape == y.shape
    return there and np.allclose(x, y, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_kinds() -> None:
    assert kind_of({"x": 0}) == "layer"
    assert kind_of({"q": 0, "k_pages": 0, "cu_seqlens_q": 0}) == "paged"
    assert kind_of({"q": 0, "cu_seqlens_q": 0}) == "packed"
    assert kind_of({"q": 0}) == "dense"
    with pytest.raises(ValueError, match="kind is 'sparse', but must be one of 'dense'"):
        deviations(small("ms_v1"), "sparse")
