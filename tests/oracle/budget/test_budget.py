"""What a budget allows, and what it does not: rows, sums of gradients, padded queries, recomputed scores."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff import oracle
from refdiff.backends import ops_for
from refdiff.oracle import Budget, Case, Recipe, Spec, budget, cases, check, diagnose, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw as layer_inputs
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from refdiff.oracle.truth.attention_operands import lambda_init
from refdiff.oracle.truth.forward import out_factor
from tests.oracle.example_inputs import draw, small
from tests.oracle.user_kernels import dense_with_gradients

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
    assert relative.min() > np.sqrt(np.mean(relative**2)) / 3


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


# A backward pass may add the products of its scores in another order than the forward pass, as tiled kernels do

SINGLE = np.float32


def _scores(spec: Spec, q: np.ndarray, k: np.ndarray, at: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of one order of summation in float32, and the derivative of the softcap."""
    z = np.zeros((*q.shape[:-1], k.shape[-2]), dtype=SINGLE)
    for i in at:
        z += q[..., :, None, i] * k[..., None, :, i]
    z *= SINGLE(spec.head_dim**-0.5)
    if spec.softcap is None:
        return z, np.ones_like(z)
    tanh = np.tanh(z / SINGLE(spec.softcap))
    return SINGLE(spec.softcap) * tanh, 1 - tanh * tanh


def _kernel(spec: Spec, inputs: dict[str, np.ndarray], dout: np.ndarray) -> dict[str, np.ndarray]:
    """Plain attention in float32 without a mask, whose backward pass adds products in reverse."""
    q, k, v, order = inputs["q"], inputs["k"], inputs["v"], list(range(spec.head_dim))
    z, _ = _scores(spec, q, k, order)
    sinks = inputs["sinks"][None, :, None, None] if spec.sinks else np.full((1, 1, 1, 1), -np.inf, dtype=SINGLE)
    top = np.maximum(z.max(axis=-1, keepdims=True), sinks)
    lse = top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True) + np.exp(sinks - top))
    out = np.exp(z - lse) @ v
    again, slope = _scores(spec, q, k, order[::-1])
    p = np.exp(again - lse)
    ds = p * (dout @ v.swapaxes(-1, -2) - (dout * out).sum(axis=-1, keepdims=True)) * slope
    unit = SINGLE(spec.head_dim**-0.5)
    transposed = ds.swapaxes(-1, -2)
    return {"out": out, "dq": ds @ k * unit, "dk": transposed @ q * unit, "dv": p.swapaxes(-1, -2) @ dout}


@pytest.mark.parametrize("fields", [{"softcap": 20.0}, {"sinks": True}, {"softcap": 20.0, "sinks": True}], ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_scores_whose_products_cancel(seed: int, fields: dict[str, Any]) -> None:
    """A score of about 5 is the sum of products of 100, which neither a sink nor a softcap changes."""
    spec = Spec.preset("attention", query_heads=4, key_heads=4, head_dim=32, causal="none", **fields)
    random = np.random.default_rng(seed)
    q, k, v = (random.normal(size=(4, 4, n, 32)) for n in (1, 2, 2))
    q *= 100
    k -= (k @ q.swapaxes(-1, -2) - 5 * random.normal(size=(4, 4, 2, 1))) * q / np.sum(q * q, axis=-1, keepdims=True)
    dout = random.normal(size=q.shape).astype(SINGLE)
    inputs = {"q": q.astype(SINGLE), "k": k.astype(SINGLE), "v": v.astype(SINGLE)}
    if spec.sinks:
        inputs["sinks"] = np.full(4, 2.0, dtype=SINGLE)
    verdict = budget(spec, inputs, "float32", dout=dout).judge(_kernel(spec, inputs, dout))
    assert verdict, str(verdict)


# Rows of queries that are padding: computed like all others, or anything, as the spec says


def _padded(inputs: dict[str, Any]) -> Any:
    return ~inputs["key_mask"][:, -inputs["q"].shape[2] :]


def unpads(spec: Any, inputs: dict[str, Any], dout: Any = None) -> Any:
    """Packs what is no padding, and leaves NaN where the rest would stand."""
    found = dense_with_gradients(spec, inputs, dout)
    if found is NotImplemented or "key_mask" not in inputs:
        return found
    tensors = {"out": found} if dout is None else {name: found[name] for name in ("out", "dq", "dk", "dv", "lse1")}
    for name in ("out", "dq", "lse1"):
        if name in tensors:
            tensors[name] = np.array(tensors[name])
            np.moveaxis(tensors[name], 1, 2)[_padded(inputs)] = np.nan
    return tensors


def _cases(padded_queries: str, dtype: str = "bfloat16") -> list[Case]:
    spec = small_spec("hf_diffllama").replace(padded_queries=padded_queries)
    return [c for c in cases("layout", spec=spec, dtype=dtype) if "key_mask" in c.inputs and _padded(c.inputs).any()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padded_queries_are_judged_if_the_spec_computes_them(dtype: str) -> None:
    for computed, case in zip(_cases("computed", dtype), _cases("any", dtype), strict=True):
        kernel = unpads(case.spec, case.inputs, case.dout)
        assert not np.any(np.moveaxis(case.dout, 1, 2)[_padded(case.inputs)])
        assert oracle.check(kernel, case.spec, case.inputs, recipe=dtype, dout=case.dout), case.name
        wrong = oracle.check(unpads(computed.spec, computed.inputs, case.dout), computed.spec, computed.inputs,
                             recipe=dtype, dout=case.dout)  # fmt: skip
        assert [name for name, t in wrong.tensors.items() if t.status == "fail"] == ["out", "dq", "lse1"]


def test_the_other_rows_are_judged() -> None:
    for case in _cases("any"):
        out = unpads(case.spec, case.inputs)["out"].astype(np.float64)
        b, t = np.argwhere(~_padded(case.inputs))[-1]
        out[b, :, t] *= 1.1
        assert oracle.check(out, case.spec, case.inputs, recipe="bfloat16").status == "fail"


def test_a_nonzero_dout_for_unspecified_padding_is_refused() -> None:
    case = _cases("any")[0]
    with pytest.raises(ValueError, match="dout is not 0 for some padded queries, and padded_queries is 'any'"):
        oracle.truth(case.spec, case.inputs, dout=np.ones(case.dout.shape))
    computed = case.spec.replace(padded_queries="computed")
    assert np.isnan(oracle.truth(computed, case.inputs, dout=np.full(case.dout.shape, np.nan)).grads["v"]).any()


# 1 − λ_init may be rounded to 16 bits, as JAX and MLX round a number that multiplies a 16-bit array


@pytest.mark.parametrize(
    ("storage", "layer"),
    [
        ("bfloat16", 0),
        pytest.param("bfloat16", 3, marks=pytest.mark.slow),
        ("float16", 4),
        pytest.param("float16", 6, marks=pytest.mark.slow),
    ],
)
def test_a_rounded_factor_passes_where_the_norms_result_is_stored(storage: str, layer: int) -> None:
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=layer, lambda_form="given")
    x = draw(spec, layer, B=1, T=64, S=64)
    dout = round_to(np.random.default_rng(layer).normal(size=(1, spec.heads, 64, spec.out_dim)), storage)
    factor = float(round_to(np.asarray(1 - lambda_init(spec, ops_for())), storage))
    kernel = spec.replace(lambda_base="constant", lambda_init=1 - factor)
    found = evaluate(kernel, x, Recipe(storage), HELD_OUT[0], dout)

    verdict = budget(spec, x, storage, dout=dout).judge(found)
    assert verdict.status == "pass"
    assert any(f"1 - λ_init is rounded to {storage} in out" in note for note in verdict.notes)

    in_registers = Recipe(storage, o="float32", p="float32")
    assert budget(spec, x, in_registers, dout=dout).judge(found).status == "fail"
    farther_off = {name: y * (2 - factor / (1 - lambda_init(spec, ops_for()))) ** -2 for name, y in found.items()}
    assert budget(spec, x, storage, dout=dout).judge(farther_off).status == "fail"


# A gradient that is a sum of terms: what rounds it as kernels do passes, and a sum with a mistake fails


def test_any_order_of_the_sum_of_a_norms_bias() -> None:
    """One float32 after another, as torch adds them; a term left out is more than any order."""
    spec = small("hf_diffllama", norm="layer", norm_bias=True)
    x = draw(spec, B=1, T=512)
    dout = np.random.default_rng(5).normal(size=(1, spec.heads, 512, spec.out_dim)).astype(np.float32)
    allowed = budget(spec, x, "float32", dout=dout)
    terms = (np.float32(out_factor(spec, allowed.inputs, ops_for())) * dout).reshape(-1, spec.out_dim)
    total = np.zeros(spec.out_dim, np.float32)
    for row in terms:
        total += row
    expected, _ = allowed.sums["dnorm_bias"]
    np.testing.assert_allclose(expected, np.sum(terms, axis=0, dtype=np.float64), rtol=1e-6, atol=1e-5)
    assert allowed.judge({"dnorm_bias": total}).status == "pass"
    assert allowed.judge({"dnorm_bias": total - terms[7]}).status == "fail"


@pytest.mark.parametrize("seed", [0, 1])
def test_any_order_of_the_sum_of_the_gradient_of_lambda(seed: int) -> None:
    spec = small("hf_diffllama", norm="none", out_scale="none", lambda_form="given")
    x = draw(spec, seed, B=2, T=128, S=128)
    dout = np.random.default_rng(seed).normal(size=(2, spec.heads, 128, spec.out_dim)).astype(np.float32)
    allowed = budget(spec, x, "float32", dout=dout)
    first, difference = (np.asarray(truth(spec, {**x, "lambda_full": np.asarray(y)}).out) for y in (0.0, 1.0))
    terms = np.float32(dout * (difference - first)).ravel()
    one_after_another = np.cumsum(terms, dtype=np.float32)[-1]
    assert allowed.judge({"dlambda_full": np.asarray(one_after_another)}).status == "pass"
    assert allowed.judge({"dlambda_full": one_after_another - np.max(np.abs(terms)) / 4}).status == "fail"


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_a_gradient_through_the_sigmoid_of_lambda(storage: str) -> None:
    """g λ (1 − λ), with λ as it is stored: 1 − λ has all of its error, as in torch's and JAX's derivative."""
    spec = small("diff_v2", rope="none")
    x = draw(spec, B=2, T=16)
    x["lambda_logits"] += np.float32(4)
    dout = np.random.default_rng(5).normal(size=(2, spec.heads, 16, spec.out_dim))
    allowed = budget(spec, x, storage, dout=dout)
    of_lambda = np.moveaxis(allowed.expected["dlambda_full"], 1, 2)
    lambda_ = 1 / (1 + np.exp(-x["lambda_logits"].astype(np.float64)))
    stored = round_to(lambda_, storage)
    mine = round_to(of_lambda * stored * (1 - stored), storage)
    assert allowed.judge({"dlambda_logits": mine}).status == "pass"
    for wrong in (-mine, round_to(of_lambda * stored, storage), mine * (1.001 if storage == "float32" else 2)):
        assert allowed.judge({"dlambda_logits": wrong}).status == "fail"


def test_a_gradient_through_the_exponential_of_a_sum() -> None:
    """λ's exponent added one float32 after another: its error, here of twice the size, is that of λ's vectors."""
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=2, head_dim=64, layer=1, rope="none")
    case = cases("serving", 1, spec=spec, dtype="float32")[3]
    allowed = budget(spec, case.inputs, "float32", dout=case.dout)
    terms = np.asarray(case.inputs["lambda_q2"]) * np.asarray(case.inputs["lambda_k2"])
    off = float(np.cumsum(terms)[-1]) - float(np.sum(terms, dtype=np.float64))
    mine = {name: allowed.expected[name] * np.exp(2 * off) for name in ("dlambda_q2", "dlambda_k2")}
    assert allowed.judge(mine).status == "pass"
    assert allowed.judge({name: y * (1 + 1e-4) for name, y in mine.items()}).status == "fail"


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_a_gradient_through_an_open_gate(storage: str) -> None:
    """The same of a gate σ(g), where g is 4 and 1 − σ(g) a fiftieth."""
    spec = small("attention", gate="sigmoid")
    x = {name: round_to(a, storage) for name, a in draw(spec, B=2, T=16).items()}
    x["gate_logits"] = round_to(x["gate_logits"] + 4, storage)
    dout = round_to(np.random.default_rng(5).normal(size=x["gate_logits"].shape), storage)
    allowed = budget(spec, x, storage, dout=dout)
    out = truth(spec.replace(gate="none"), {name: x[name] for name in "qkv"}).out
    sigma = round_to(1 / (1 + np.exp(-x["gate_logits"].astype(np.float64))), storage)
    mine = round_to(dout * out * sigma * (1 - sigma), storage)
    assert allowed.judge({"dgate_logits": mine}).status == "pass"
    for wrong in (-mine, round_to(dout * out * sigma, storage), mine * (1.001 if storage == "float32" else 1.1)):
        assert allowed.judge({"dgate_logits": wrong}).status == "fail"


def test_a_gradient_of_lambda_that_rounding_hides_is_no_pass() -> None:
    """In bfloat16 `extreme` ∂L/∂λ_q1 is below its own allowance in one case: zeros do not pass, and the other shows."""
    states = []
    for case in cases("extreme", spec=small_spec("hf_diffllama"), dtype="bfloat16"):
        found = dense_with_gradients(case.spec, case.inputs, case.dout)
        zeros = {"dlambda_q1": 0 * found["dlambda_q1"]}
        states.append(check(zeros, case.spec, case.inputs, recipe="bfloat16", dout=case.dout).status)
    assert set(states) == {"inconclusive", "fail"}


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_gradients_of_the_biases_of_projections(storage: str) -> None:
    """Sums over tokens, here one float32 after another; a token left out is more than any order."""
    spec = small_spec("hf_diffllama")
    x = layer_inputs(spec, Structure(2, 64, 64, hidden=24), "natural", 1, storage)
    rng = np.random.default_rng(2)
    for of in "qkvo":
        x[f"{of}_proj.bias"] = rng.normal(size=len(x[f"{of}_proj.weight"])).astype(np.float32)
    dout = round_to(rng.normal(size=(2, 64, 24)), storage)
    allowed = budget(spec, x, storage, dout=dout)
    names = [f"d{of}_proj.bias" for of in "qkvo"]
    expected = {name: allowed.expected[name] for name in names}
    assert allowed.judge(expected).status == "pass"
    one_after_another = np.cumsum(dout.reshape(-1, 24).astype(np.float32), axis=0)[-1]
    assert allowed.judge({"do_proj.bias": one_after_another}).status == "pass"
    assert allowed.judge({"do_proj.bias": one_after_another - dout[0, 7]}).status == "fail"
    for name, y in expected.items():
        assert allowed.judge({name: 2 * y}).status == "fail"
    right = {"out": allowed.expected["out"], **expected}
    named = diagnose({**right, "dk_proj.bias": 2 * expected["dk_proj.bias"]}, spec, x, recipe=storage, dout=dout)
    assert str(named).startswith("unique: factor of dk_proj.bias = 2\n")
