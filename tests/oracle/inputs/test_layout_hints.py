"""What is said to put an array right does so, in every layout; and nothing is said of shapes that are none."""

from __future__ import annotations

import re

import numpy as np
import pytest

from refdiff.oracle import cases
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.inputs.layout_hints import axes_of_output, other_layout
from refdiff.oracle.truth import truth

N = {"B": 2, "h": 3, "T": 5, "e": 8}
OTHERS = {
    "B T h e": "bhte->bthe",
    "B T he": "bhte->bthe",
    "BT h e": "bhte->bthe",
    "Bh T e": "bhte->bhte",
    "BT he": "bhte->bthe",
    "T B h e": "bhte->tbhe",
    "T B he": "bhte->tbhe",
    "T h e": "bhte->bthe",
    "h T e": "bhte->bhte",
    "T he": "bhte->bthe",
}


def _length(axis: str, n: dict[str, int]) -> int:
    return int(np.prod([n[a] for a in axis]))


@pytest.mark.parametrize("layout", OTHERS)
def test_the_advice_gives_back_the_very_numbers(layout: str) -> None:
    n = N | {"B": 2 if "B" in layout else 1}
    right = np.arange(_length("BhTe", n)).reshape(n["B"], 3, 5, 8)
    x = np.einsum(OTHERS[layout], right).reshape([_length(axis, n) for axis in layout.split()])
    said = other_layout(x.shape, "BhTe", n)
    (steps,) = re.findall(r"; (\S.*) puts", said)
    assert np.array_equal(eval(f"x{steps}", {"x": x}), right), said


def test_packed_sequences_of_the_layout_profile() -> None:
    case = cases("layout", seed=1, spec=small_spec("hf_diffllama"))[0]
    out = truth(case.spec, case.inputs, want=("out",)).out
    assert out is not None
    packed = out[0].transpose(1, 0, 2)
    said = other_layout(packed.shape, axes_of_output("out", 4), dict(zip("BhTe", out.shape, strict=True)))
    assert said == ": it lies as (T, h, e); .transpose(1, 0, 2)[None] puts it right"
    assert np.array_equal(packed.transpose(1, 0, 2)[None], out)


def test_two_that_are_the_same_are_said_once_and_two_that_differ_both() -> None:
    one = {"B": 1, "h": 3, "T": 1, "e": 8}
    assert other_layout((1, 3, 8), "BhTe", one) == ": it lies as (T, h, e); .transpose(1, 0, 2)[None] puts it right"
    said = other_layout((5, 5, 8), "BhTe", {"B": 1, "h": 5, "T": 5, "e": 8})
    assert said == (
        ": if it lies as (T, h, e), .transpose(1, 0, 2)[None] puts it right, or if it lies as (h, T, e), [None] puts "
        "it right"
    )


@pytest.mark.parametrize("shape", [(2, 3, 40), (5, 2, 8, 3), (30, 8), (240,), (8, 5, 3, 2), (4, 3, 5, 4)])
def test_nothing_is_said_of_other_shapes(shape: tuple[int, ...]) -> None:
    assert other_layout(shape, "BhTe", N) == ""


def test_lengths_that_are_not_known() -> None:
    assert other_layout((5, 12, 6), "BHTd", {"H": 12, "d": 6}).startswith(": it lies as (T, H, d); ")
    assert other_layout((5, 2, 12, 6), "BHTd", {"H": 12, "d": 6}) == ": heads and tokens are swapped; " + (
        ".transpose(0, 2, 1, 3) puts them right"
    )
    assert other_layout((5, 12, 6), "BHTd", {"B": 2, "H": 12, "d": 6}) == ""
    assert other_layout((10, 12, 6), "BHTd", {"B": 2, "H": 12, "d": 6}).startswith(": it lies as (B T, H, d); ")
    assert other_layout((12, 4, 8), "BHTd", {"H": 4, "d": 8}) == (
        ": it lies as (T, H, d); .transpose(1, 0, 2)[None] puts it right"
    )
    assert other_layout((12, 5, 8), "BHTd", {"H": 4, "d": 8}) == (
        ": it lies as (B H, T, d); .reshape(3, 4, 5, 8) puts it right"
    )
    assert other_layout((5, 11), "BTD", {}) == ": it lies as (T, D); [None] puts it right"
    assert other_layout((0, 6, 5), "BKSd", {"B": 0, "K": 4, "d": 6}) == ""
    assert other_layout((0, 4), "BhT", {"B": 0, "h": 4, "T": 6}) == ": it lies as (B T, h); " + (
        ".reshape(0, 6, 4).transpose(0, 2, 1) puts it right"
    )


def test_letters_of_outputs() -> None:
    assert axes_of_output("out", 4) == tuple("BhTe")
    assert axes_of_output("out", 3) == tuple("BTD")
    assert axes_of_output("dv", 4) == tuple("BVSw")
    assert axes_of_output("lse2", 3) == tuple("BhT")
    assert axes_of_output("dlambda_q1", 1) == ("A",)
