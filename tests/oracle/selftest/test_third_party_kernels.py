"""Kernels of others: the right ones pass, and are measured; a wrong one is refused, and so is a name of nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Recipe
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from tests.oracle.selftest.third_party_kernels import case_of_others, kernels_of


def right(spec: Any, inputs: Any, dout: Any, dtype: str) -> Any:
    return evaluate(spec, inputs, Recipe(dtype), HELD_OUT[0], dout)


def wrong(spec: Any, inputs: Any, dout: Any, dtype: str) -> Any:
    found = right(spec, inputs, dout, dtype)
    return {"out": found["out"], "dq": np.roll(found["dq"], 1, axis=2)}


KERNELS = {"right": ("hf_diffllama", False, right), "wrong": ("ms_v1", False, wrong)}
NO_MAPPING = 3


def test_correct_kernels_pass_and_wrong_ones_are_refused() -> None:
    table = case_of_others(7, "float16", "natural", kernels_of(f"{__name__}:KERNELS"))
    ours = table.total(rule="rows")
    assert (ours.real, ours.real_refused, ours.own) == (4, 1, 0)
    assert table.total(rule="flash 2x").real == 4
    assert not table.holds
    assert table.refusals[0].startswith("float16 natural backward wrong, seed 7\nfail")
    assert table.errors["float16", "natural", "forward", "right"] == [1.0], "it is one of those that noise is made of"
    assert max(table.errors["float16", "natural", "backward", "wrong"]) > 100


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tests", "expected package.module:NAME"),
        (f"{__name__}:NO_MAPPING", "has no mapping NO_MAPPING"),
        (f"{__name__}:NONE", "has no mapping NONE"),
        ("tests.nowhere:KERNELS", "nowhere"),
    ],
)
def test_unknown_names_are_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kernels_of(name)
