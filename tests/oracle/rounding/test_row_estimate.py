"""A sample of queries keeps the rule: against all rows in all orders, E_r is no smaller where it is only bounded."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from refdiff.oracle import Budget, Recipe, Spec, budget
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.rounding import row_estimate
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from refdiff.oracle.thresholds import THRESHOLDS

SQUARE = Structure(batch=1, queries=192, keys=192)


def _spec(preset: str) -> Spec:
    return Spec.preset(preset, query_heads=4, key_heads=4 if preset == "timm" else 2, head_dim=16, layer=3)


def _sample(monkeypatch: pytest.MonkeyPatch, spec: Spec, inputs: Inputs, recipe: Recipe) -> Budget:
    """The budget of a sample, however small the case."""
    monkeypatch.setattr(row_estimate, "THRESHOLDS", dataclasses.replace(THRESHOLDS, sample_scores=0))
    found = budget(spec, inputs, recipe)
    monkeypatch.setattr(row_estimate, "THRESHOLDS", THRESHOLDS)
    return found


@pytest.mark.parametrize(
    ("preset", "values", "name"),
    [
        ("hf_diffllama", "natural", "bfloat16"),
        ("timm", "cancellation", "float16"),
        ("diff_v2", "tiny_values", "float32"),
        ("ms_v1", "discriminating", "tf32"),
        ("timm", "lambda", "bfloat16"),
        ("hf_diffllama", "degenerate", "float32"),
    ],
)
def test_a_row_sample_bounds_the_errors_of_all_rows(
    preset: str, values: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, recipe = _spec(preset), Recipe.of(name)
    inputs = draw(spec, SQUARE, values, 5, recipe.storage)
    whole, some = budget(spec, inputs, recipe), _sample(monkeypatch, spec, inputs, recipe)
    assert whole.sample is None
    if some.sample is None:
        assert values == "degenerate", "where all values are alike, errors follow no estimate, and all rows are run"
        np.testing.assert_array_equal(some.rows["out"], whole.rows["out"])
        return
    queries = some.sample
    assert len(queries) < 60
    ratio = some.rows["out"] / whole.rows["out"]
    luck = float(ratio[..., queries].mean())
    assert 0.4 < luck < 2.5, "the same orders, other errors at random, of which that of λ is one for all rows"
    others = np.delete(ratio, queries, axis=-1) / luck
    assert others.min() > 0.5, "a correct kernel comes no nearer to the limit than by errors at random"
    assert np.median(others) < (4 if recipe.storage != "float32" else 9), "and a wrong one is seen"
    for order in HELD_OUT:
        right = evaluate(spec, some.inputs, recipe, order)["out"]
        assert some.judge(right).status == whole.judge(right).status
    signs = np.random.default_rng(0).choice([-1.0, 1.0], right.shape)
    assert some.judge(whole.expected["out"] + 8 * whole.rows["out"][..., None] * signs).status == "fail"


def test_a_key_lost_in_one_row_that_was_not_sampled_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, recipe = _spec("hf_diffllama"), Recipe("float16")
    inputs = draw(spec, SQUARE, "discriminating", 2, recipe.storage)
    some = _sample(monkeypatch, spec, inputs, recipe)
    (t, *_) = (t for t in range(30, 192) if t not in some.sample)
    mask = np.ones((1, 1, 192, 192), dtype=bool)
    mask[..., t, 0:2] = False
    right = evaluate(spec, some.inputs, recipe, HELD_OUT[0])["out"]
    wrong = evaluate(spec, {**some.inputs, "mask": mask}, recipe, HELD_OUT[0])["out"]
    assert some.judge(right)
    verdict = some.judge(wrong)
    assert verdict.status == "fail"
    assert f"t {t})" in str(verdict)


@pytest.mark.parametrize(("values", "recipe"), [("extreme", "bfloat16"), ("extreme", "float16")])
def test_where_errors_do_not_add_up_all_rows_are_run(values: str, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _spec("hf_diffllama")
    inputs = draw(spec, SQUARE, values, 4, recipe)
    inputs["q"] = (40 * inputs["q"].astype(np.float32)).astype(inputs["q"].dtype)
    whole, some = budget(spec, inputs, recipe), _sample(monkeypatch, spec, inputs, Recipe(recipe))
    assert some.sample is None
    np.testing.assert_array_equal(some.rows["out"], whole.rows["out"])


def test_a_row_with_small_errors_in_all_summation_orders() -> None:
    """E_r of it alone was a quarter of what the other rows have of their estimates."""
    spec = small_spec("timm").replace(layer=29)
    allowed = budget(spec, draw(spec, Structure(2, 9, 9), "extreme", 200_013, "float32"), "float32")
    rows = allowed.rows["out"]
    share = rows / row_estimate.estimate_rows(spec, allowed.inputs, allowed.recipe).errors
    assert share[0, 1, 4] == pytest.approx(2 / 3 * np.median(share), rel=0.05)
    assert np.mean(share < 0.66 * np.median(share)) < 0.01
