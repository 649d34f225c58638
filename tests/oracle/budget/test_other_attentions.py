"""Correct kernels of every preset and choice pass, every tensor is judged; the three numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refdiff import oracle
from refdiff.oracle import Budget, Recipe, budget, cases
from refdiff.oracle.budget.statistics import (
    LIMITS,
    RowBudget,
    root_mean_square,
    slope,
    statistics,
    uncertain_share,
)
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw, round_to_storage
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from tests.oracle.example_inputs import row_budget, small

LAYER_NORM = {"norm": "layer", "norm_weight": True, "norm_bias": True}
CHOICES: list[tuple[str, dict[str, Any]]] = [
    *((preset, {}) for preset in ("hf_diffllama", "ms_v1", "diff_v2", "gda", "motif3")),
    ("hf_diffllama", {"partial_rotary_factor": 0.7, "rotary_at": "last"}),
    ("hf_diffllama", {"qk_norm": "rms", "qk_norm_weight": True}),
    ("timm", {"qk_norm": "layer", "qk_norm_weight": True}),
    ("hf_diffllama", LAYER_NORM),
    ("ms_v1", {**LAYER_NORM, "norm_over": "all_heads", "norm_per_head": True}),
    ("hf_diffllama", {"norm_over": "half_head", "softcap": 3.0, "out_scale": "1 - lambda"}),
    ("hf_diffllama", {"lambda_per_head": True}),
    ("ms_v1", {"gate": "sigmoid"}),
    ("diff_v2", {"gate": "silu"}),
]  # fmt: skip
RECIPES = [Recipe("float32"), Recipe("bfloat16"), Recipe.eager("float16")]
SUMS_IN_16_BITS = [Recipe(storage, accumulate=storage) for storage in ("bfloat16", "float16")]
QUICK = [(recipe, "discriminating") for recipe in (*RECIPES, Recipe.of("tf32"))]
SLOW = [(recipe, values) for recipe in RECIPES for values in ("natural", "extreme", "degenerate")]
SLOW += [(recipe, "natural") for recipe in (*SUMS_IN_16_BITS, Recipe.eager("bfloat16"))]


def _case(preset: str, fields: dict[str, Any], recipe: Recipe, values: str = "discriminating") -> tuple[Budget, Any]:
    spec = small(preset, **fields)
    inputs = draw(spec, Structure(2, 7, 9), values, 6, recipe.storage)
    dout = round_to_storage(np.random.default_rng(7).normal(size=(2, spec.heads, 7, spec.out_dim)), recipe.storage)
    found = budget(spec, inputs, recipe, dout=dout)
    assert {f"d{name}" for name in inputs} | {"out", "dlambda_full"} == set(found.expected)
    return found, dout.astype(np.float64)


@pytest.mark.parametrize(
    ("recipe", "values"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
    ids=lambda x: getattr(x, "name", x),
)
@pytest.mark.parametrize(("preset", "fields"), CHOICES, ids=str)
def test_held_out_summation_orders_pass(preset: str, fields: dict[str, Any], recipe: Recipe, values: str) -> None:
    found, dout = _case(preset, fields, recipe, values)
    for order in HELD_OUT[:: 1 if values != "discriminating" else 2]:
        verdict = found.judge(evaluate(found.spec, found.inputs, recipe, order, dout))
        assert verdict.status != "fail", f"{order.name}: {verdict}"


@pytest.mark.parametrize(("preset", "fields"), CHOICES, ids=str)
def test_every_gradient_is_judged(preset: str, fields: dict[str, Any]) -> None:
    """One that is half as large again is refused."""
    found, _ = _case(preset, fields, Recipe("float32"))
    right = {name: round_to(y, "float32") for name, y in found.expected.items()}
    assert found.judge(right).status == "pass"
    for name in right:
        assert found.judge({name: 1.5 * right[name]}).status == "fail", name


def test_rows_that_see_no_key_are_the_bias_of_the_norm() -> None:
    """Scaled, and rounded once."""
    spec = small("hf_diffllama", **LAYER_NORM)
    inputs = draw(spec, Structure(1, 3, 0), "discriminating", 6)
    found = budget(spec, inputs, "float32")
    bias = np.broadcast_to(inputs["norm_bias"].astype(np.float64), found.expected["out"].shape)
    assert np.allclose(found.expected["out"], bias * (0.6 * np.exp(-0.3 * spec.layer) + 0.2), rtol=1e-14)
    assert found.judge(found.expected["out"].astype(np.float32)).status == "pass"
    assert found.judge(0.999 * found.expected["out"]).status == "fail"


# The three numbers by hand, and that each sees what the others do not

E = 1e-3


def _numbers(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A truth, and errors of 0.8 E at random, which hold."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(2, 3, 11, 64))
    return y, 0.8 * E * rng.normal(size=y.shape)


def _found(actual: np.ndarray, budget: RowBudget) -> dict[str, bool]:
    return {s.name: s.holds for s in statistics(actual, budget)}


def _without_slope(y: np.ndarray, e: np.ndarray) -> np.ndarray:
    return e - slope(e, y) * y


def test_by_hand() -> None:
    y = np.asarray([[[[3.0, 4.0], [0.0, 2.0]]]])
    e = np.asarray([[0.03, -0.04], [0.0, 0.01]])
    found = {s.name: s for s in statistics(y + e, row_budget(y, 0.01))}
    assert found["row"].value == pytest.approx(np.sqrt(0.0025 / 2) / 0.01)
    assert found["row"].at == (0, 0, 0)
    assert found["bulk"].value == pytest.approx(np.sqrt((0.00125 + 0.00005) / 2) / 0.01)
    assert found["bulk"].limit == pytest.approx(1.3 + 2.7 / np.sqrt(2))
    assert found["slope"].value == pytest.approx(abs(0.09 - 0.16 + 0.02) / 29)


def test_noisy_rows_have_little_weight_in_the_slope() -> None:
    y, e = np.asarray([[3.0, 4.0], [0.0, 2.0], [0.0, 0.1]]), np.asarray([[0.3, -0.4], [0.0, 0.02], [0.1, 0.1]])
    rows = np.asarray([1.0, 0.1, 0.2])  # the last is larger than its row
    found = {s.name: s for s in statistics(y + e, replace(row_budget(y, 1.0), rows=rows))}
    assert found["slope"].value == pytest.approx(abs((0.9 - 1.6) + 0.04 / 0.01) / (25 + 4 / 0.01))


@pytest.mark.parametrize("unit", [1.0, 1e-310, 1e-170, 1e-90, 1e120, 1e160, 1e307])
def test_a_root_mean_square_neither_overflows_nor_underflows(unit: float) -> None:
    x = unit * np.array([[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert root_mean_square(x) == pytest.approx([2.5 * unit, unit, 0.0], rel=1e-12)
    assert root_mean_square(x[:2]) == pytest.approx([2.5 * unit, unit], rel=1e-12)
    assert root_mean_square(np.array([[np.inf, 1.0], [np.nan, 1.0]])) == pytest.approx([np.inf, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("mistake", "notices"),
    [("row", {"row"}), ("bulk", {"bulk"}), ("slope", {"slope"}), ("none", set())],
)
def test_each_number_sees_what_the_others_do_not(mistake: str, notices: set[str]) -> None:
    y, e = _numbers()
    e = _without_slope(y, e)
    if mistake == "row":
        e[1, 2, 7] *= 5.5
    if mistake == "bulk":
        e *= 2.2
    budget = row_budget(y)
    if mistake == "slope":
        e = e + 1e-5 * y
    else:
        budget = replace(budget, slope=1e-5)
    failed = {name for name, holds in _found(y + e, budget).items() if not holds}
    assert failed == notices


@pytest.mark.parametrize(("size", "times"), [(1000.0, 4.0), (4.1, 4.0), (3.9, 5.25), (0.0, 5.25)])
def test_rows_that_correct_kernels_miss_by_a_quarter_have_a_limit_of_their_own(size: float, times: float) -> None:
    y = size * np.where(np.arange(16) % 2, 1.0, -1.0) * np.ones((1, 2, 20, 1))
    for off, holds in ((0.99 * times, True), (1.01 * times, False)):
        actual = y.copy()
        actual[0, 1, 3] += off
        row = next(s for s in statistics(actual, row_budget(y, 1.0)) if s.name == "row")
        assert row.holds == holds
        assert row.value == pytest.approx(4 * off / times)


def test_masks_must_be_the_same() -> None:
    y, e = _numbers()
    y[0, 0, 0], y[0, 0, 1, 0], y[0, 0, 1, 1] = np.nan, np.inf, -np.inf
    budget = row_budget(y)
    assert _found(y + e, budget)["masks"]
    for at, value in [((0, 0, 0, 3), 1.0), ((1, 1, 1, 1), np.nan), ((0, 0, 1, 0), -np.inf), ((1, 0, 0, 0), np.inf)]:
        wrong = y + e
        wrong[at] = value
        (masks,) = (s for s in statistics(wrong, budget) if s.name == "masks")
        assert (masks.value, masks.at) == (1.0, at)


def test_rows_that_nobody_can_judge() -> None:
    y, e = _numbers()
    budget = row_budget(y)
    assert uncertain_share(budget) == 0.0
    budget = replace(budget, slope=1e-5)
    budget.doubtful[0] = True
    e[0] = np.nan
    assert uncertain_share(budget) == 0.5 > LIMITS.share
    assert all(_found(y + e, budget).values())


def test_rows_below_their_own_error_have_no_slope() -> None:
    """dq of a saturated softmax is 1e-245, and an allowed error of it 1e245 times as large."""
    y, e = _numbers()
    assert _found(1e-245 * y + e, row_budget(1e-245 * y))["slope"]
    y[0] *= 1e-245
    assert not _found(np.where(y, 1.01 * y, 0.0) + 0.1 * e, replace(row_budget(y), slope=1e-5))["slope"]


@pytest.mark.parametrize(
    ("profile", "dtype", "factors"),
    [
        ("cancellation", "float16", (0.98, 1.02)),
        ("extreme", "bfloat16", (0.99, 1.004)),
        ("natural", "bfloat16", (0.99, 1.01)),
    ],
)
def test_a_factor_on_everything_is_refused(profile: str, dtype: str, factors: tuple[float, ...]) -> None:
    for case in cases(profile, 7, spec=small_spec("hf_diffllama"), dtype=dtype):
        allowed = oracle.budget(case.spec, case.inputs, dtype)
        for order in HELD_OUT[:3]:
            out = evaluate(case.spec, allowed.inputs, allowed.recipe, order)["out"]
            assert allowed.judge(out).status != "fail", f"{case.name} {order.name}"
            for factor in factors:
                wrong = allowed.judge(round_to(factor * out, dtype))
                assert "slope" in {s.name for s in wrong.tensors["out"].statistics if not s.holds}, (
                    f"{case.name} {factor}"
                )
