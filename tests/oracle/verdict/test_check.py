"""One call: inputs, output, verdict; and the message of a failing test."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec, assert_close, check, truth
from refdiff.oracle.inputs.sequences import Inputs
from tests.oracle.example_inputs import draw, small

SPEC = small("hf_diffllama")


@pytest.fixture
def x() -> Inputs:
    return draw(SPEC, dtype=np.float32)


def test_gradients_and_bfloat16() -> None:
    spec = small("diff_v2")
    x = draw(spec, dtype=ml_dtypes.bfloat16)
    dout = np.random.default_rng(0).normal(size=(2, spec.heads, 5, spec.out_dim)).astype(ml_dtypes.bfloat16)
    found = truth(spec, x, dout=dout)
    mine = {"out": found.out, "dv": found.grads["v"], "dlambda_logits": found.grads["lambda_logits"]}
    assert check(mine, spec, x, recipe=Recipe("bfloat16"), dout=dout).recipe == "bfloat16"
    mine["dv"] = mine["dv"] * 1.1
    assert check(mine, spec, x, recipe="bf16", dout=dout).tensors["dv"].status == "fail"


def test_nan_in_an_input_is_reported(x: Inputs) -> None:
    x["q"][1, 2, 3, 4] = np.nan
    verdict = check(truth(SPEC, x).out.astype(np.float32), SPEC, x, recipe="float32")
    assert verdict, "one row of the truth is NaN, and so is that of the output"
    (note,) = verdict.notes
    assert note.startswith("NaN or infinities in the inputs: q has 1 of 720, the first at (1, 2, 3, 4). ")
    assert note in " ".join(str(verdict).split())
    x["q"][:] = np.nan
    assert check(truth(SPEC, x).out, SPEC, x, recipe="float32").status == "inconclusive"


@pytest.mark.parametrize(("wrong", "says"), [(1, "1 number is NaN or"), (2, "2 numbers are NaN or")])
def test_nan_in_an_output_is_counted(x: Inputs, wrong: int, says: str) -> None:
    out = truth(SPEC, x).out.astype(np.float32)
    out[0, 0, 0, :wrong] = np.nan
    assert says in " ".join(str(check(out, SPEC, x, recipe="float32")).split())


def test_a_wrong_shape_is_reported_before_the_budget_is_computed(x: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["refdiff.oracle.verdict.check"], "budget", None)
    for actual in (np.zeros((2, 5, 7)), {"out": np.zeros((2, 5, 7))}):
        with pytest.raises(ValueError, match=r"^out: got shape \(2, 5, 7\), expected \(2, \d+, 5, \d+\)"):
            check(actual, SPEC, x, recipe="float32")


def test_a_function_is_called_with_these_inputs(x: Inputs) -> None:

    def kernel(spec: Spec, inputs: Mapping[str, Any]) -> Any:
        assert all(np.array_equal(inputs[name], a) and inputs[name].strides == a.strides for name, a in x.items())
        return {"out": truth(spec, inputs, want=("out",)).out}

    def with_gradients(spec: Spec, inputs: Mapping[str, Any], dout: Any = None) -> Any:
        return {"dq": truth(spec, inputs, dout=dout).grads["q"]}

    dout = np.ones((2, SPEC.heads, 5, SPEC.out_dim), dtype=np.float32)
    assert list(check(kernel, SPEC, x, recipe="float32").tensors) == ["out"]
    assert check(kernel, SPEC, x, recipe="float32", dout=dout)
    assert list(check(with_gradients, SPEC, x, recipe="float32", dout=dout).tensors) == ["dq"]
    assert not check(lambda s, i: -kernel(s, i)["out"], SPEC, x, recipe="float32")
    with pytest.raises(ValueError, match="the kernel returned NotImplemented: it does not serve these inputs"):
        check(lambda _, __: NotImplemented, SPEC, x, recipe="float32")


def test_a_kernel_may_not_change_what_it_is_given(x: Inputs) -> None:
    before = {name: a.copy() for name, a in x.items()}

    def kernel(spec: Spec, inputs: Mapping[str, Any]) -> Any:
        out = truth(spec, inputs, want=("out",)).out
        inputs["q"][...] = 0
        return out

    with pytest.raises(ValueError, match="the kernel has changed its input q: it must leave inputs as they are"):
        check(kernel, SPEC, x, recipe="float32")
    assert all(np.array_equal(x[name], a) for name, a in before.items())


def test_row_and_name_of_the_mistake(x: Inputs) -> None:
    wrong = truth(SPEC.replace(rope="interleaved"), x).out
    with pytest.raises(AssertionError) as caught:
        assert_close(wrong, SPEC, x, recipe="float32")
    text = str(caught.value)
    assert "rows are wrong" in text
    assert "(b " in text
    assert "diagnosis:" in text
    assert "other_rope_pairing" in text.partition("diagnosis:")[2]
    with pytest.raises(AssertionError) as without:
        assert_close({"out": wrong}, SPEC, x, recipe="float32", diagnose=False)
    assert "diagnosis" not in str(without.value)


def test_a_missing_recipe_is_answered_with_the_choices(x: Inputs) -> None:
    with pytest.raises(
        ValueError, match=r"^recipe: got None, expected the type that the kernel stores, 'float32', 'tf32'"
    ):
        check(truth(SPEC, x).out, SPEC, x)


def test_a_failing_verdict_doubts_the_recipe(x: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    wrong = {}
    for dtype, recipe in ((np.float32, "float32"), (ml_dtypes.bfloat16, "float32"), (ml_dtypes.bfloat16, "bfloat16")):
        x = draw(SPEC, dtype=dtype)
        right = truth(SPEC, x).out.astype(np.float32)
        assert not check(right, SPEC, x, recipe="float32").notes
        wrong[dtype, recipe] = " ".join(check(1.1 * right, SPEC, x, recipe=recipe).notes)
    assert "hold values of bfloat16" not in wrong[np.float32, "float32"]
    assert "give recipe='bfloat16'" in wrong[ml_dtypes.bfloat16, "float32"]
    assert "Triton's interpreter truncates to bfloat16" in wrong[ml_dtypes.bfloat16, "bfloat16"]
