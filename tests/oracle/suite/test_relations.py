"""Each relation holds for right kernels of all wirings, and each is broken by something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec
from refdiff.oracle.cases.values import round_to_storage
from refdiff.oracle.inputs.outputs import adapt_kernel
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
def test_holds_for_a_right_kernel(preset: str, relation: Callable[..., str]) -> None:
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


def _by_batch(spec: Spec, inputs: dict[str, Any]) -> Any:
    return right(spec, inputs) * np.float32(1 + 0.01 * inputs["q"].shape[0])


def _by_queries(spec: Spec, inputs: dict[str, Any]) -> Any:
    return right(spec, inputs) * np.float32(1 + 0.01 * inputs["q"].shape[2])


def _by_keys(spec: Spec, inputs: dict[str, Any]) -> Any:
    return right(spec.replace(gqa="repeat_then_pair"), inputs)


def _without_boundaries(spec: Spec, inputs: dict[str, Any]) -> Any:
    return right(spec, {n: x for n, x in inputs.items() if not n.startswith("cu_")})


def _not_normed(spec: Spec, inputs: dict[str, Any]) -> Any:
    return right(spec.replace(norm="none", norm_weight=False), {n: x for n, x in inputs.items() if n != "norm_weight"})


def _values_shifted(spec: Spec, inputs: dict[str, Any]) -> Any:
    return right(spec, {**inputs, "v": inputs["v"] + np.arange(inputs["v"].shape[-1], dtype=np.float32)})


def _lambda_of_the_layer(spec: Spec, inputs: dict[str, Any]) -> Any:
    return right(spec, {n: 0 * x if n.startswith("lambda_") else x for n, x in inputs.items()})


@pytest.mark.parametrize(
    ("relation", "kernel"),
    [
        ("same_twice", another_each_time),
        ("past_unmoved", sees_the_future),
        ("decode_as_prefill", _by_queries),
        ("batch_as_single", _by_batch),
        ("packed_as_separate", _without_boundaries),
        ("groups_as_copies", _by_keys),
        ("values_scaled", _not_normed),
        ("ones_for_values", _values_shifted),
        ("maps_swapped", _lambda_of_the_layer),
    ],
)
def test_is_broken_by_a_wrong_kernel(relation: str, kernel: Callable[..., Any]) -> None:
    spec = small("ms_v1")
    wrong = getattr(relations, relation)(kernel, spec, _inputs(spec), Recipe("float32"))
    assert "differ" in wrong
