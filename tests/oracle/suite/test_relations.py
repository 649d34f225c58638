"""Each relation holds for right kernels of all wirings, and each is broken by a wrong kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec
from refdiff.oracle.cases.values import round_to_storage
from refdiff.oracle.inputs.signature import adapt_kernel
from refdiff.oracle.suite import relations
from refdiff.oracle.suite.relations import RELATIONS, DeclinedError
from tests.oracle.example_inputs import draw, small
from tests.oracle.user_kernels import (
    another_each_time,
    dense_with_gradients,
    epsilon_compiled_in,
    right,
    sees_the_future,
)


def _inputs(spec: Spec, dtype: str = "float32", **lengths: int) -> dict[str, Any]:
    return {n: round_to_storage(x, dtype) for n, x in draw(spec, **{"T": 6, "S": 9, **lengths}).items()}


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.__name__)
@pytest.mark.parametrize("preset", ["hf_diffllama", "ms_v1", "diff_v2", "phi4flash", "attention"])
def test_holds_for_a_correct_kernel(preset: str, relation: Callable[..., str]) -> None:
    spec = small(preset, sinks=True, v_head_dim=4) if preset == "attention" else small(preset)
    no_norm = ("values_scaled", "maps_swapped")
    needs = {"attention": no_norm, "diff_v2": ("groups_as_copies", *no_norm)}
    if relation.__name__ in needs.get(preset, ()):
        with pytest.raises(DeclinedError, match="the relation needs"):
            relation(right, spec, _inputs(spec), Recipe("float32"))
    else:
        kernel = adapt_kernel(
            dense_with_gradients if "dout" in relation.__name__ or "gradients" in relation.__name__ else right
        )
        assert relation(kernel, spec, _inputs(spec), Recipe("float32")) == ""


@pytest.mark.parametrize("relation", ["values_scaled", "maps_swapped"])
@pytest.mark.parametrize("preset", ["hf_diffllama", "ms_v1"])
@pytest.mark.parametrize("recipe", ["float32", "bfloat16", "float16", Recipe("float16", norm="float16")], ids=str)
def test_needs_no_other_epsilon(recipe: Any, preset: str, relation: str) -> None:
    spec, recipe = small(preset), Recipe.of(recipe)
    inputs = _inputs(spec, recipe.storage)
    assert getattr(relations, relation)(epsilon_compiled_in, spec, inputs, recipe) == ""
    with pytest.raises(DeclinedError, match="the relation needs an ε without effect on large values"):
        getattr(relations, relation)(right, spec.replace(norm_eps=1e9), inputs, recipe)
    with pytest.raises(DeclinedError, match="the relation needs values"):
        getattr(relations, relation)(right, spec, {**inputs, "v": 0 * inputs["v"]}, recipe)


WRONG: dict[str, Callable[..., Any]] = {
    "same_twice": another_each_time,
    "past_unmoved": sees_the_future,
    "decode_as_prefill": lambda spec, x: right(spec, x) * np.float32(1 + 0.01 * x["q"].shape[2]),
    "batch_as_single": lambda spec, x: right(spec, x) * np.float32(1 + 0.01 * x["q"].shape[0]),
    "packed_as_separate": lambda spec, x: right(spec, {n: a for n, a in x.items() if not n.startswith("cu_")}),
    "groups_as_copies": lambda spec, x: right(spec.replace(gqa="repeat_then_pair"), x),
    "values_scaled": lambda spec, x: right(
        spec.replace(norm="none", norm_weight=False), {n: a for n, a in x.items() if n != "norm_weight"}
    ),
    "ones_for_values": lambda spec, x: right(spec, {**x, "v": x["v"] + np.arange(x["v"].shape[-1], dtype=np.float32)}),
    "maps_swapped": lambda spec, x: right(spec, {n: 0 * a if n.startswith("lambda_") else a for n, a in x.items()}),
}
"""For each relation, a kernel that breaks it."""

ELSEWHERE = {"same_gradients_twice", "strides_do_not_matter", "dout_strides_do_not_matter"}
"""Broken by the kernels of test_coverage.py."""


def test_each_relation_has_a_kernel_that_breaks_it() -> None:
    assert {*WRONG, *ELSEWHERE} == {relation.__name__ for relation in RELATIONS}


@pytest.mark.parametrize("relation", WRONG)
def test_is_broken_by_a_wrong_kernel(relation: str) -> None:
    spec = small("ms_v1")
    wrong = getattr(relations, relation)(WRONG[relation], spec, _inputs(spec), Recipe("float32"))
    assert "differ" in wrong
