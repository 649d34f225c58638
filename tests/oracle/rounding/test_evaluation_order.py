"""Products, exponentials and roundings in an order; orders in parallel; and a sample of queries in place of all."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle import Budget, Recipe, Spec, budget, check, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw as draw_values
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.rounding import U32, ensemble, round_to, row_estimate
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import (
    DRAWS,
    HELD_OUT,
    MEMBERS,
    Arithmetic,
    Order,
    lambda_init_error,
    sum_error,
)
from refdiff.oracle.thresholds import THRESHOLDS
from tests.oracle.example_inputs import draw, small


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_one_term_at_a_time_is_the_sum_from_left_to_right() -> None:
    a = np.asarray([[1.0, 2.0**-24, 2.0**-24]], dtype=np.float32)
    how = Arithmetic(Recipe("float32"), Order("", terms=1))
    assert how.product(a, np.ones((3, 1), dtype=np.float32))[0, 0] == 1.0
    assert how.product(a[:, ::-1], np.ones((3, 1), dtype=np.float32))[0, 0] == 1.0 + 2.0**-23


def test_rounds_where_the_recipe_stores() -> None:
    x = _normal(7)
    how, stored = (Arithmetic(Recipe("bf16", o="fp32"), Order("", stored=s)) for s in (False, True))
    np.testing.assert_array_equal(how.round_at(x, "p"), round_to(x, "bfloat16"))
    np.testing.assert_array_equal(how.round_at(x, "o"), x)
    np.testing.assert_array_equal(how.round_if_eager(x, "p"), x)
    np.testing.assert_array_equal(stored.round_if_eager(x, "p"), round_to(x, "bfloat16"))


@pytest.mark.parametrize(("base2", "error"), [(False, 3e-7), (True, 2e-5)])
def test_exponentials(base2: bool, error: float) -> None:
    x = np.linspace(-60, 0, 301, dtype=np.float32)
    how = Arithmetic(Recipe("float32"), Order("", base2=base2))
    got, want = how.exp(x, np.float32(0)), np.exp(x.astype(np.float64))
    assert np.max(np.abs(got / want - 1)) < error
    assert how.exp(np.float32(-np.inf), np.float32(0)) == 0


@pytest.mark.parametrize("storage", ["bfloat16", "float32"])
def test_errors_at_random_have_the_size_of_roundings(storage: str) -> None:
    x = np.random.default_rng(0).normal(size=4000)
    x[:2] = 0.0, -np.inf
    how = Arithmetic(Recipe(storage), DRAWS[0])
    noisy = how.round_at(how.array(x), "p")
    assert noisy.dtype == np.float64
    assert noisy[1] == -np.inf
    assert noisy[0] == 0
    off = np.sqrt(np.mean((noisy[2:] / x[2:] - 1) ** 2)) / how.u("p")
    rounded = np.sqrt(np.mean((round_to(x[2:], storage) / x[2:] - 1) ** 2)) / how.u("p")
    assert 1 < off / rounded < 2


@pytest.mark.parametrize("n", [1, 7, 101, 1009])
def test_the_estimated_error_of_a_sum(n: int) -> None:
    a, b = np.random.default_rng(4).normal(size=(2, 500, n)).astype(np.float32)
    got = (a * b).cumsum(axis=-1, dtype=np.float32)[:, -1]
    wide = a.astype(np.float64) * b
    off = np.sqrt(np.mean((got - wide.sum(axis=-1)) ** 2 / np.sum(wide**2, axis=-1)))
    assert 0.8 * off <= sum_error(n) <= 2 * off


def test_one_sum_of_many_numbers() -> None:
    """Of 4,096 ones a float16 accumulator that takes one at a time keeps 2,048, and tiles of 16 all of them."""
    ones = np.ones((1, 4096), dtype=np.float32)
    recipe = Recipe("float16", accumulate="fp16")
    assert Arithmetic(recipe, MEMBERS[0]).product(ones, ones.T).item() == 2048
    assert Arithmetic(recipe, Order("by tensor core")).product(ones, ones.T).item() == 4096
    assert Arithmetic(Recipe("float16"), MEMBERS[0]).product(ones, ones.T).item() == 4096
    assert Arithmetic(recipe, Order("two")).product(300 * ones[:, :2], 300 * ones[:, :2].T).item() == np.inf


def test_the_bound_of_lambda_init_in_float32() -> None:
    """Every layer, and exponentials that are a unit in the last place off, stay within it."""
    for layer in range(100):
        exact = 0.8 - 0.6 * np.exp(-0.3 * layer)
        power = np.exp(np.float32(-0.3) * np.float32(layer))
        for near in (power, np.nextafter(power, np.float32(0)), np.nextafter(power, np.float32(1))):
            found = np.float32(0.8) - np.float32(0.6) * near
            assert abs(float(found) - exact) <= lambda_init_error(exact), layer
    assert lambda_init_error(0.8) < 1.1 * U32


# The orders of a budget give the same one after another and in parallel


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_parallel_budget_equals_the_sequential_one(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    spec = small("hf_diffllama")
    inputs = draw(spec, dtype=np.float32)
    one = budget(spec, inputs, dtype)
    monkeypatch.setattr(ensemble, "MIN_PARALLEL_SCORES", 0)
    other = budget(spec, inputs, dtype)
    assert np.array_equal(one.rows["out"], other.rows["out"])
    assert one.tensors["out"].slope == other.tensors["out"].slope


@pytest.mark.parametrize("name", ["bias", "k", "v"])
@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_float32_inputs_are_not_rounded_to_a_16_bit_q(name: str, storage: str) -> None:
    """A bias of ALiBi, and a cache in int8 with float32 scales, have numbers that 16 bits cannot hold."""
    spec = small("diff_v2")
    narrow = np.dtype(storage if storage == "float16" else ml_dtypes.bfloat16)
    inputs = {x: y.astype(narrow) for x, y in draw(spec, T=5, S=40).items()}
    inputs["bias"] = np.zeros((1, spec.heads, 5, 40), narrow)
    inputs[name] = np.random.default_rng(1).normal(0, 4, inputs[name].shape).astype(np.float32)
    right = truth(spec, inputs)
    mine = {"out": np.asarray(right.out).astype(narrow)} | {x: np.float32(getattr(right, x)) for x in ("lse1", "lse2")}
    assert check(mine, spec, inputs, recipe=storage)
    exact = ensemble.quantise(inputs, Recipe(storage))
    assert np.array_equal(exact[name], inputs[name])
    wide = ensemble.quantise({x: np.asarray(y, np.float64) for x, y in inputs.items()}, Recipe(storage))
    assert np.array_equal(wide[name], inputs[name].astype(narrow).astype(np.float64))


# A sample of queries keeps the rule: against all rows in all orders, E_r is no smaller where it is only bounded

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
    inputs = draw_values(spec, SQUARE, values, 5, recipe.storage)
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
    inputs = draw_values(spec, SQUARE, "discriminating", 2, recipe.storage)
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
    inputs = draw_values(spec, SQUARE, values, 4, recipe)
    inputs["q"] = (40 * inputs["q"].astype(np.float32)).astype(inputs["q"].dtype)
    whole, some = budget(spec, inputs, recipe), _sample(monkeypatch, spec, inputs, Recipe(recipe))
    assert some.sample is None
    np.testing.assert_array_equal(some.rows["out"], whole.rows["out"])


def test_a_row_with_small_errors_in_all_summation_orders() -> None:
    """E_r of it alone was a quarter of what the other rows have of their estimates."""
    spec = small_spec("timm").replace(layer=29)
    allowed = budget(spec, draw_values(spec, Structure(2, 9, 9), "extreme", 200_013, "float32"), "float32")
    rows = allowed.rows["out"]
    share = rows / row_estimate.estimate_rows(spec, allowed.inputs, allowed.recipe).errors
    assert share[0, 1, 4] == pytest.approx(2 / 3 * np.median(share), rel=0.05)
    assert np.mean(share < 0.66 * np.median(share)) < 0.01
