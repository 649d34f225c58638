"""The deviations of a spec: complete, each function once, each with a name."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from refdiff.oracle import deviations
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes import LINKS
from refdiff.oracle.mistakes.kernel import output_with
from refdiff.oracle.mistakes.listed import EVERY, KINDS
from refdiff.oracle.strategies import Structure, draw
from tests.oracle.example_inputs import small

AXES = {
    "pair", "gqa", "value layout", "rope kind", "rope dim", "rope base", "rope offset", "scale", "lambda_init layer",
    "lambda_init constant", "lambda form", "output scale", "norm kind", "norm extent", "eps", "order", "clamp",
    "row sums", "mask align", "mask off by one", "window", "lse base", "maps", "v1 or v2",
}  # fmt: skip
"""Of deviations from v1; in "v1 or v2" λ goes through a sigmoid."""


@pytest.mark.parametrize("name", ["hf_diffllama", "ms_v1"])
def test_every_axis_has_one(name: str) -> None:
    found = deviations(small(name))
    assert {d.axis for d in found} >= AXES
    assert len(found) >= 60
    if name == "ms_v1":
        assert "norm weight" in {d.axis for d in found}


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_unique_and_rows_known(kind: str) -> None:
    found = deviations(small("diff_v2"), kind)
    names = [name for d in found for name in (d.name, *d.aliases)]
    assert len(set(names)) == len(names) > 30
    assert all(d.row in ("", *LINKS) for d in found)
    assert len({d.name for d in EVERY}) == len(EVERY)


def test_all_are_different_from_each_other_on_some_input() -> None:
    spec = small("ms_v1")
    probes = [
        draw(spec, Structure(3, 6, 11, padding="left"), "discriminating", 11),
        draw(spec, Structure(2, 8, 8), "tiny_values", 12),
        draw(spec, Structure(2, 6, 4), "discriminating", 13),
    ]
    exact = [as_float64(spec, inputs) for inputs in probes]
    outs = {d: [output_with(spec, inputs, [d]) for inputs in exact] for d in deviations(spec)}
    for a, b in combinations(outs, 2):
        assert not all(map(same, outs[a], outs[b])), f"{a} and {b}"


def same(x: np.ndarray | None, y: np.ndarray | None) -> bool:
    there = x is not None and y is not None and x.shape == y.shape
    return there and np.allclose(x, y, rtol=1e-9, atol=1e-12, equal_nan=True)
