"""The pieces of the conformance suite, called as a worker calls them."""

from __future__ import annotations

import os
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest

from refdiff.oracle.metamorphic import RELATIONS, same_twice
from refdiff.oracle.outcome import Outcome, against_itself, against_truth, in_words, kernel_of
from refdiff.oracle.recipe import Recipe
from refdiff.oracle.strategies.fixed import cases, small_spec

USER = "tests.oracle.user_kernels"
RECIPE = Recipe.of("float32")
CASES = cases("natural", 3, spec=small_spec("hf_diffllama"))


@pytest.mark.parametrize(
    ("function", "status", "compared", "says"),
    [
        ("right", "pass", True, "pass"),
        ("wrong_rope", "fail", True, "fail"),
        ("declines", "skip", False, "NotImplemented"),
        ("changes_its_input", "fail", False, "the kernel has changed its input q"),
    ],
)
def test_against_the_truth(function: str, status: str, compared: bool, says: str) -> None:
    piece = pickle.loads(pickle.dumps(partial(against_truth, f"{USER}:{function}", RECIPE, CASES[0])))
    found = in_words(piece)
    assert (found.status, found.compared) == (status, compared)
    assert says in found.text


@pytest.mark.parametrize(("function", "status"), [("right", "pass"), ("declines", "skip")])
def test_against_itself(function: str, status: str) -> None:
    assert same_twice in RELATIONS
    found = in_words(
        pickle.loads(pickle.dumps(partial(against_itself, f"{USER}:{function}", RECIPE, same_twice, CASES)))
    )
    assert found.status == status
    assert not found.compared


def restless(spec: Any, inputs: dict[str, Any]) -> Any:
    restless.calls += 1  # type: ignore[attr-defined]
    return np.full((2, 6, 16, 32), restless.calls, dtype=np.float32)  # type: ignore[attr-defined]


restless.calls = 0  # type: ignore[attr-defined]


def test_a_kernel_that_changes_its_mind() -> None:
    found = against_itself("tests.oracle.test_outcome:restless", RECIPE, same_twice, CASES)
    assert found.status == "fail"
    assert f" {CASES[0].name}: " in found.text


def test_an_error_comes_back_as_words() -> None:
    found = in_words(partial(against_truth, "no.such_module:f", RECIPE, CASES[0]))
    assert found == Outcome("fail", found.text)
    assert found.text.startswith("ModuleNotFoundError: No module named 'no'\nTraceback")


@pytest.mark.parametrize("name", ["nothing", "math:", ":f", "math:nothing"])
def test_kernels_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="REFDIFF_KERNEL is"):
        kernel_of(name)
    assert kernel_of("os:getcwd") is os.getcwd
