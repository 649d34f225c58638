"""No order goes beyond the hard bound; a wrong answer of another class does."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.oracle import Recipe, truth
from refdiff.oracle.budget.hard_bound import bounds, gamma, score_error
from refdiff.oracle.budget.statistics import root_mean_square
from refdiff.oracle.rounding.ensemble import evaluate, quantised
from refdiff.oracle.rounding.evaluation_order import HELD_OUT, MEMBERS
from refdiff.oracle.truth.attention_operands import attention_operands
from tests.oracle.example_inputs import draw, small

RECIPES = [Recipe.of(n) for n in ("float32", "tf32", "bfloat16", "float16")] + [Recipe.eager("bfloat16")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
@pytest.mark.parametrize("preset", ["hf_diffllama", "ms_v1", "diff_v2"])
def test_every_order_is_within(preset: str, recipe: Recipe) -> None:
    spec = small(preset)
    x = quantised(draw(spec, T=9, S=13), recipe)
    hard = bounds(spec, x, recipe)
    y = truth(spec, x, want=("out",)).out
    assert hard.shape == y.shape[:3]
    for order in (*MEMBERS, *HELD_OUT):
        off = root_mean_square(evaluate(spec, x, recipe, order)["out"] - y)
        assert np.all(off <= hard), order.name


def test_is_not_so_loose_that_it_says_nothing() -> None:
    spec = small("hf_diffllama")
    x = quantised(draw(spec, T=9, S=13), Recipe("float32"))
    y = truth(spec, x, want=("out",)).out
    assert np.all(bounds(spec, x, Recipe("float32")) < 1e-2 * root_mean_square(y))
    wrong = truth(spec.replace(layer=spec.layer + 1), x, want=("out",)).out
    assert np.all(root_mean_square(wrong - y) > bounds(spec, x, Recipe("float32")))


@pytest.mark.parametrize("norm_over", ["half_head", "all_heads"])
def test_other_norms_and_softcap(norm_over: str) -> None:
    spec = small(
        "ms_v1", norm_over=norm_over, softcap=3.0, norm_weight=norm_over == "all_heads", out_scale="1 - lambda"
    )
    recipe = Recipe("bfloat16")
    x = quantised(draw(spec, T=5, S=9), recipe)
    off = root_mean_square(evaluate(spec, x, recipe, MEMBERS[0])["out"] - truth(spec, x, want=("out",)).out)
    assert np.all(off <= bounds(spec, x, recipe))


def test_a_score_that_overflows_bounds_nothing() -> None:
    spec = small("hf_diffllama", rope="none")
    x = quantised(draw(spec, T=3, S=3), Recipe("float16"))
    x["q"][:], x["k"][:] = 200.0, 200.0
    _, off = score_error(spec, x, attention_operands(spec, x, ops_for()), Recipe.eager("float16"), 1)
    assert np.all(np.isinf(off))
    assert gamma(10) == pytest.approx(10 * 2.0**-24)
