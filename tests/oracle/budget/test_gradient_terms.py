"""A gradient that is a sum of terms: what rounds it as kernels do passes, and a sum with a mistake fails."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.oracle import Spec, cases, check, diagnose
from refdiff.oracle.budget.budget import budget
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw as layer_inputs
from refdiff.oracle.rounding import round_to
from refdiff.oracle.truth import truth
from refdiff.oracle.truth.forward import out_factor
from tests.oracle.example_inputs import draw, small
from tests.oracle.user_kernels import dense_with_gradients


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
