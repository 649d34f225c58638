"""Correct kernels pass, in orders that no budget is made of, and every tensor is judged: presets, and other choices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Budget, Recipe, budget
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw, round_to_storage
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from tests.oracle.example_inputs import small

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
