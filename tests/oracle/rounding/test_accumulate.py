"""Kernels whose matrix products are summed in 16 bits: judged by a recipe that says so, and by no other."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from refdiff import layers, oracle
from refdiff.backends import ops_for, overlay
from refdiff.oracle import Case, Recipe, Spec, cases
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.conformance import recipe_of, select_cases
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import quantise
from refdiff.oracle.rounding.evaluation_order import MEMBERS, Arithmetic, Order
from refdiff.oracle.suite.outcome import judge_case

HERE = "tests.oracle.rounding.test_accumulate"
HALF, SINGLE = np.float16, np.float32


def _product(a: Any, b: Any, terms: int = 8) -> Any:
    """a b in NumPy's float16, some products at a time, as a tensor core with a float16 accumulator adds them."""
    total = np.zeros((*a.shape[:-1], b.shape[-1]), dtype=HALF)
    for i in range(0, a.shape[-1], terms):
        total = (total + a[..., i : i + terms].astype(SINGLE) @ b[..., i : i + terms, :].astype(SINGLE)).astype(HALF)
    return total


def _attention(q1: Any, k1: Any, q2: Any, k2: Any, v: Any, lambda_: Any, mask: Any = None, bias: Any = None, *,
               causal: bool = True, ops: Any = None) -> Any:  # fmt: skip
    n = q1.shape[1] // k1.shape[1]
    T, S = q1.shape[2], k1.shape[2]
    see = layers.causal_mask(T, S, xp=np, device=None) if causal and T > 1 else np.ones((T, S), dtype=bool)
    see = see if mask is None else see & mask
    maps = []
    for q, k in ((q1, k1), (q2, k2)):
        across = np.swapaxes(np.repeat(k, n, axis=1), -1, -2)
        z = np.where(see, _product(q, across).astype(SINGLE) / SINGLE(math.sqrt(q.shape[-1])), SINGLE(-math.inf))
        weights = layers.softmax(np.where(see, z, SINGLE(-1e30)))
        maps.append(_product(weights.astype(HALF), np.repeat(v, n, axis=1)).astype(SINGLE))
    return (maps[0] - SINGLE(lambda_) * maps[1]).astype(HALF).astype(np.float64)


def sums_in_float16(spec: Spec, inputs: dict[str, Any]) -> Any:
    """All else is computed in float64 and rounded."""
    if "bias" in inputs:
        return NotImplemented

    def wrap(name: str, layer: Callable[..., Any]) -> Callable[..., Any]:
        return _attention if name == "diff_attention" else layer

    with np.errstate(all="ignore"):
        exact = quantise(inputs, Recipe("float16"))
        found = oracle.truth(spec, exact, want=("out",), ops=overlay(ops_for(), wrap)).out
        return np.asarray(found).astype(HALF)


def _cases(profile: str) -> list[Case]:
    return cases(profile, spec=small_spec("hf_diffllama"), dtype="float16")


@pytest.mark.parametrize("profile", ["natural", pytest.param("modules", marks=pytest.mark.slow), "cancellation"])
def test_a_kernel_with_float16_sums_is_right_by_its_recipe(profile: str) -> None:
    for case in _cases(profile):
        found = oracle.check(sums_in_float16(case.spec, case.inputs), case.spec, case.inputs,
                             recipe=Recipe("float16", accumulate="float16"))  # fmt: skip
        assert found.status == "pass", f"{case.name}: {found}"


def _coarse_product(a: Any, b: Any) -> Any:
    """a b, with the sums rounded to bfloat16 after each tile of 32 terms."""
    total = np.zeros((*a.shape[:-1], b.shape[-1]))
    for i in range(0, a.shape[-1], 32):
        total = round_to(total + a[..., i : i + 32] @ b[..., i : i + 32, :], "bfloat16")
    return total


@pytest.mark.parametrize(("dtype", "status"), [("bfloat16", "pass"), ("float32", "fail")])
def test_coarse_sums_show_in_float32(dtype: str, status: str) -> None:
    """In 16 bits an error below the allowed one does not show that a kernel rounds more than its recipe says."""

    def attention(q1: Any, k1: Any, q2: Any, k2: Any, v: Any, lambda_: Any, *_: Any, product: Any, **__: Any) -> Any:
        n, see = q1.shape[1] // k1.shape[1], np.tri(q1.shape[2], k1.shape[2], k1.shape[2] - q1.shape[2], dtype=bool)
        maps = []
        for q, k in ((q1, k1), (q2, k2)):
            z = q @ np.swapaxes(np.repeat(k, n, axis=1), -1, -2) / math.sqrt(q.shape[-1])
            maps.append(product(layers.softmax(np.where(see, z, -1e30)), np.repeat(v, n, axis=1)))
        return maps[0] - lambda_ * maps[1]

    spec = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=32, layer=2)
    (case,) = cases("natural", seed=3, spec=spec, dtype=dtype, queries=4, keys=4096)
    right = oracle.truth(spec, case.inputs).out
    errors = []
    for product, expected in ((np.matmul, "pass"), (_coarse_product, status)):
        ops = overlay(ops_for(), lambda n, f, p=product: partial(attention, product=p) if n == "diff_attention" else f)
        out = round_to(oracle.truth(spec, case.inputs, want=("out",), ops=ops).out, dtype)
        errors.append(np.linalg.norm(out - right))
        assert oracle.check(out.astype(case.inputs["q"].dtype), spec, case.inputs, recipe=dtype).status == expected
    assert errors[1] > 3 * errors[0]


def test_one_sum_of_many_numbers() -> None:
    """Of 4,096 ones a float16 accumulator that takes one at a time keeps 2,048, and tiles of 16 all of them."""
    ones = np.ones((1, 4096), dtype=SINGLE)
    recipe = Recipe("float16", accumulate="fp16")
    assert Arithmetic(recipe, MEMBERS[0]).product(ones, ones.T).item() == 2048
    assert Arithmetic(recipe, Order("by tensor core")).product(ones, ones.T).item() == 4096
    assert Arithmetic(Recipe("float16"), MEMBERS[0]).product(ones, ones.T).item() == 4096
    assert Arithmetic(recipe, Order("two")).product(300 * ones[:, :2], 300 * ones[:, :2].T).item() == np.inf


def test_the_suite_takes_the_recipe() -> None:
    """Scores of `extreme` overflow in float16 sums, which no kernel with float32 sums may do."""
    text = '{"storage": "fp16", "accumulate": "fp16"}'
    found = select_cases({"REFDIFF_PROFILES": "natural,extreme", "REFDIFF_RECIPE": text})
    for recipe, wrong in ((recipe_of(text), False), (recipe_of("fp16"), True)):
        outcomes = [judge_case(f"{HERE}:sums_in_float16", recipe, case).status for case in found]
        assert ("fail" in outcomes) == wrong, outcomes
        assert "pass" in outcomes
