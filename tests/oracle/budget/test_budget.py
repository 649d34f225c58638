"""What a budget allows, and what it does not."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle import Budget, Recipe, Spec, budget, truth
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from tests.oracle.example_inputs import draw, small

RECIPES = ["float32", "tf32", "bfloat16", "float16"]


def _case(preset: str, recipe: str, seed: int = 0, **lengths: int) -> tuple[Spec, Budget, np.ndarray]:
    spec = small(preset)
    x = draw(spec, seed, **{"T": 11, "S": 13, **lengths})
    dout = np.random.default_rng(seed).normal(size=(2, spec.heads, lengths.get("T", 11), spec.out_dim))
    return spec, budget(spec, x, recipe, dout=dout), round_to(dout, Recipe.of(recipe).storage)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_a_log_sum_exp_of_a_narrow_type_may_be_rounded_to_it(dtype: type) -> None:
    spec, found, _ = _case("hf_diffllama", "float32")
    lse = np.asarray(truth(spec, found.inputs).lse1)
    rounded = lse.astype(dtype)
    assert found.judge({"lse1": rounded})
    assert not found.judge({"lse1": rounded.astype(np.float32)}), "what is given as float32 is held to float32"
    assert not found.judge({"lse1": (lse * 1.02).astype(dtype)})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_element_of_a_sum_is_allowed_less_because_all_orders_are_near_it(seed: int) -> None:
    _, found, dout = _case("ms_v1", "float32", seed)
    _, allowed = found.sums["dnorm_weight"]
    terms = dout * found.expected["out"] / found.inputs["norm_weight"]
    relative = allowed / np.sqrt(np.sum(terms**2, axis=(0, 1, 2)))
    assert relative.min() > 0.5 * np.sqrt(np.mean(relative**2))


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_lost_key_in_one_row_fails(recipe: str) -> None:
    spec, found, dout = _case("hf_diffllama", recipe)
    x = dict(found.inputs)
    mask = np.ones((1, 1, 11, 13), dtype=bool)
    mask[..., 7, 2] = False
    wrong = evaluate(spec, {**x, "mask": mask}, Recipe.of(recipe), HELD_OUT[0], dout)
    right = evaluate(spec, x, Recipe.of(recipe), HELD_OUT[0], dout)
    verdict = found.judge({"out": np.where(np.arange(11)[:, None] == 7, wrong["out"], right["out"])})
    assert verdict.status == "fail"
    assert "t 7)" in verdict.tensors["out"].reasons[0]


def test_rows_that_see_nothing_are_exact() -> None:
    spec = small("hf_diffllama")
    x = draw(spec, T=5, S=3)
    found = budget(spec, x, "bfloat16")
    out = found.expected["out"]
    assert not out[:, :, :2].any()
    assert not found.rows["out"][:, :, :2].any()
    assert found.judge(round_to(out, "bfloat16")).status == "pass"
    out = out.copy()
    out[0, 0, 0, 0] = 1e-20
    assert found.judge(out).status == "fail"


def test_a_difference_of_equal_maps_is_inconclusive() -> None:
    spec = small("hf_diffllama", lambda_form="given")
    x = draw(spec, T=11, S=13)
    h = spec.heads
    x["q"][:, h:], x["k"][:, 2:], x["lambda_full"] = x["q"][:, :h], x["k"][:, :2], np.asarray(1.0)
    found = budget(spec, {**x, "q": x["q"] * 1.0}, "bfloat16")
    assert found.judge(found.expected["out"]).status in ("inconclusive", "fail")
    assert not found.judge(found.expected["out"])


@pytest.mark.parametrize("exponent", [20.0, 44.0, 88.0])
def test_a_lambda_so_large_that_a_norm_overflows_is_inconclusive(exponent: float) -> None:
    spec = small("hf_diffllama")
    x = draw(spec)
    x["lambda_q1"] = x["lambda_k1"] = np.full_like(x["lambda_q1"], np.sqrt(exponent / x["lambda_q1"].size))
    found = budget(spec, x, "float32")
    status = "pass" if exponent < 40.0 else "inconclusive"
    assert found.judge(found.expected["out"]).status == status


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        ({}, "nothing to judge"),
        ({"dq": np.ones(3)}, r"'dq' cannot be judged; gradients need dout="),
        ({"dbias": np.ones(3)}, r"'dbias' cannot be judged \(bias has no gradient here; leave it out\): there are out"),
        ({"outt": np.ones(3)}, "'outt' cannot be judged: there are out, lse1"),
        (np.ones((2, 5, 6, 12)), r"if it is \(B, T, h, e\), .transpose\(0, 2, 1, 3\) puts it right"),
    ],
)
def test_refuses(actual: object, message: str) -> None:
    spec = small("hf_diffllama")
    with pytest.raises(ValueError, match=message):
        budget(spec, draw(spec), "bfloat16").judge(actual)


def test_numbers_below_the_range_of_the_type_may_be_lost() -> None:
    spec = small("diff_v2")
    x = draw(spec, T=5, S=7)
    x["v"] = np.full_like(x["v"], 2.0**-24)
    found = budget(spec, x, "float16")
    assert found.expected["out"].any()
    assert found.judge(np.zeros_like(found.expected["out"])).tensors["out"].status != "fail"


def test_weights_that_are_flushed_to_zero_may_be_missing_in_a_gradient() -> None:
    """A key with so little weight that its gradient is about 2⁻¹²⁰, made of weights of which some are below 2⁻¹²⁶."""
    spec = small("diff_v2", rope="none", causal="none")
    x = draw(spec, T=5, S=7)
    d = spec.head_dim
    x["q"] = np.ones_like(x["q"])
    x["k"][:, :, 0] = -85 / np.sqrt(d)
    found = budget(spec, x, "float32", dout=np.ones((2, spec.heads, 5, spec.out_dim)))
    dk = found.expected["dk"].copy()
    size = np.sqrt(np.mean(dk[:, :, 0] ** 2, axis=-1))
    assert np.all((size > 2.0**-126) & (size < 2.0**-110))
    dk[:, :, 0] = np.where(size[..., None] < 2.0**-120, 0.0, dk[:, :, 0])
    assert not np.array_equal(dk, found.expected["dk"])
    assert found.judge({"dk": dk}).status == "pass"


def test_rows_that_see_nothing_may_be_nan() -> None:
    """They have no budget."""
    spec = small("hf_diffllama").replace(masked_rows="nan")
    x = draw(spec, T=6, S=4)  # the first two queries see no key
    found = budget(spec, x, "float32")
    assert np.isnan(found.expected["out"][:, :, :2]).all()
    assert not found.rows["out"][:, :, :2].any()
    assert found.judge(evaluate(spec, found.inputs, Recipe.of("float32"), HELD_OUT[0])["out"]).status == "pass"
    zeros = spec.replace(masked_rows="zeros")
    assert found.judge(truth(zeros, x).out).status == "fail"


def test_repr_is_short() -> None:
    spec, found, _ = _case("hf_diffllama", "bfloat16")
    assert repr(found) == str(found)
    assert repr(found).startswith(f"Budget(bfloat16, expected: out (2, {spec.heads}, 11, 12) float64, dq (2, ")
    assert len(repr(found)) < 500


def test_score_gradients_may_be_flushed_to_zero_before_a_large_query_multiplies_them() -> None:
    spec = Spec.preset("attention", query_heads=1, key_heads=1, head_dim=1, scale=1.0)
    x = {"q": np.full((1, 1, 1, 1), 500.0), "k": np.array([[[[0.0], [-0.174]]]]), "v": np.array([[[[1.0], [2.0]]]])}
    found = budget(spec, x, "float32", dout=np.ones((1, 1, 1, 1)))
    dscore = found.expected["dk"][0, 0, 1, 0] / 500
    assert 2.0**-126 < dscore < 2.0**-124
    assert found.judge({"dk": np.zeros((1, 1, 2, 1), dtype=np.float32)}).status != "fail"


@pytest.mark.parametrize("product", [-9e4, 9e4])
def test_float16_products_that_leave_the_range_before_another_scale(product: float) -> None:
    """An eager kernel adds −65504 to what is hidden: where a row sees ±∞ alone, nothing can be said of it."""
    spec = Spec.preset("attention", query_heads=1, key_heads=1, head_dim=40, scale=0.1)
    q, k = np.zeros((2, 1, 1, 2, 40), np.float16)
    q[0, 0, :, 0], k[0, 0, 0, 0] = 300, product / 300
    v = np.stack([np.full(40, 2.0), np.full(40, -2.0)])[None, None].astype(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        z = (q @ k.swapaxes(-1, -2)) * np.float16(0.1) + np.triu(np.full((2, 2), -65504, np.float16), 1)
        p = np.exp((z - z.max(axis=-1, keepdims=True)).astype(np.float32))
        out = (p / p.sum(axis=-1, keepdims=True)).astype(np.float16) @ v
    assert not np.allclose(out[0, 0, 0], 2.0), "the first query sees the first key alone"
    verdict = budget(spec, {"q": q, "k": k, "v": v}, Recipe.eager("float16")).judge(out)
    assert verdict.status == "inconclusive", str(verdict)
