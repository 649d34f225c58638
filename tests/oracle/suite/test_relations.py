"""Each relation holds for right kernels of all variants, and each is broken by a wrong kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from refdiff.oracle import Recipe, Spec
from refdiff.oracle.cases.values import round_to_storage
from refdiff.oracle.inputs.signature import adapt_kernel
from refdiff.oracle.suite import relations
from refdiff.oracle.suite.relations import RELATIONS
from tests.oracle.example_inputs import draw, small
from tests.oracle.user_kernels import (
    another_each_time,
    dense_with_gradients,
    right,
    sees_the_future,
)


def _inputs(spec: Spec, dtype: str = "float32", **lengths: int) -> dict[str, Any]:
    return {n: round_to_storage(x, dtype) for n, x in draw(spec, **{"T": 6, "S": 9, **lengths}).items()}


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.__name__)
@pytest.mark.parametrize("preset", ["hf_diffllama", "ms_v1", "diff_v2", "phi4flash", "attention"])
def test_holds_for_a_correct_kernel(preset: str, relation: Callable[..., str]) -> None:
    spec = small(preset, sinks=True, v_head_dim=4) if preset == "attention" else small(preset)
    for kernel in (dense_with_gradients, right):
        assert relation(adapt_kernel(kernel), spec, _inputs(spec), Recipe("float32")) == ""


WRONG: dict[str, Callable[..., Any]] = {
    "same_twice": another_each_time,
    "past_unmoved": sees_the_future,
}
"""For each relation, a kernel that breaks it."""

ELSEWHERE = {"strides_do_not_matter"}
"""Broken by the kernels of test_coverage.py."""


def test_each_relation_has_a_kernel_that_breaks_it() -> None:
    assert {*WRONG, *ELSEWHERE} == {relation.__name__ for relation in RELATIONS}


@pytest.mark.parametrize("relation", WRONG)
def test_is_broken_by_a_wrong_kernel(relation: str) -> None:
    spec = small("ms_v1")
    wrong = getattr(relations, relation)(adapt_kernel(WRONG[relation]), spec, _inputs(spec), Recipe("float32"))
    assert "differ" in wrong
