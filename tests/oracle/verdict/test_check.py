"""One call: inputs, output, verdict; verdicts of single tensors, and the message of a failing test."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec, assert_close, budget, check, truth
from refdiff.oracle.budget.statistics import RowBudget, Statistic
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.verdict.judge import judge_numbers, judge_rows
from refdiff.oracle.verdict.verdict import TensorVerdict, Verdict
from tests.oracle.example_inputs import draw, row_budget, small

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


# Verdicts of single tensors, and their words; a log-sum-exp to the other base


def _budget(y: np.ndarray, e: float = 1e-3) -> RowBudget:
    return row_budget(y, e, "bfloat16", 1e-4)


def _y() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(2, 3, 5, 8))


def _reasons(actual: np.ndarray, budget: RowBudget) -> dict[str, str]:
    """What is told of a tensor that fails, by the name of the statistic."""
    verdict = judge_rows("out", actual, budget)
    assert verdict.status == "fail"
    return {line.split(":")[0]: line for line in verdict.reasons}


def test_the_worst_row_and_what_was_allowed() -> None:
    y = _y()
    actual = y.copy()
    actual[1, 2, 4] += 0.01
    row = _reasons(actual, _budget(y))["row"]
    assert row.startswith("row: 1 of 30 rows is wrong; row (b 1, head 2, t 4) is off by")
    assert "row (b 1, head 2, t 4) is off by 0.01 rms, allowed 0.004" in row
    actual[1, 2, 1:4] += 0.01
    row = _reasons(actual, _budget(y))["row"]
    assert row.startswith("row: 4 of 30 rows are wrong, all in tokens 1 to 4 of head 2 of sequence 1; ")
    actual[0, 0] += 0.01
    assert _reasons(actual, _budget(y))["row"].startswith("row: 9 of 30 rows are wrong; row")


def test_inconclusive_is_no_pass() -> None:
    y = _y()
    verdict = judge_rows("out", y, _budget(y, 0.5))
    assert verdict.status == "inconclusive"
    assert "cannot tell right from wrong" in verdict.notes[0]
    overflowing = replace(_budget(y), doubtful=np.ones(y.shape[:-1], dtype=bool))
    assert judge_rows("out", y, overflowing).notes[0].startswith("correct kernels overflow in 100% of the rows")


def test_sums_have_an_absolute_bound() -> None:
    y = np.asarray([1e-3, -2.0])
    assert judge_numbers("dlambda_q1", y + np.asarray([9e-3, -0.01]), y, np.asarray([1e-2, 0.1])).status == "pass"
    verdict = judge_numbers("dlambda_q1", y + np.asarray([0.0, 0.2]), y, np.asarray(0.1))
    assert (verdict.status, verdict.statistics[0].at) == ("fail", (1,))
    assert "element 1 is -1.8, expected -2 ± 0.1" in verdict.reasons[0]
    near = judge_numbers("dlambda_full", np.asarray(-0.14428344), np.asarray(-0.14428334), np.asarray(4.6e-8))
    assert near.reasons == ("it is -0.14428344, expected -0.14428334 ± 4.6e-08",)
    assert judge_numbers("dlambda_full", np.asarray(np.nan), np.asarray(1.0), np.asarray(1.0)).status == "fail"


@pytest.mark.parametrize("name", ["lse1", "dlambda_full"])
@pytest.mark.parametrize("found", [1e30, np.nan, 1.0])
def test_numbers_in_which_correct_kernels_overflow_are_not_judged(name: str, found: float) -> None:
    expected, allowed = np.ones((1, 1, 2)), np.array([[[np.inf, 0.1]]])
    verdict = judge_numbers(name, np.array([[[found, 1.05]]]), expected, allowed)
    assert verdict.status == "inconclusive"
    assert verdict.notes == ("correct kernels overflow in 1 of 2 numbers, which were not judged",)
    assert judge_numbers(name, np.array([[[found, 1.2]]]), expected, allowed).status == "fail"


def test_a_sum_for_which_zeros_would_pass_is_inconclusive() -> None:
    expected = np.array([0.3, -0.2])
    verdict = judge_numbers("dlambda_q1", expected, expected, np.full(2, 0.4))
    assert verdict.status == "inconclusive"
    assert "zeros would pass too" in verdict.notes[0]
    assert judge_numbers("dlambda_q1", expected, expected, np.full(2, 0.25)).status == "pass", "one of them shows"
    assert judge_numbers("dlambda_q1", 0 * expected, 0 * expected, np.full(2, 0.4)).status == "pass", "zeros are right"
    assert judge_numbers("dlambda_q1", -expected, expected, np.full(2, 0.4)).status == "fail"


def test_a_log_sum_exp_to_the_other_base() -> None:
    y = np.asarray([[[1.5, -np.inf, 30.0]]])
    allowed = np.full(y.shape, 1e-5)
    assert judge_numbers("lse1", y + 5e-6, y, allowed, "e").status == "pass"
    verdict = judge_numbers("lse1", y / np.log(2) + 1e-6, y, allowed, "e")
    assert (verdict.status, verdict.notes) == ("fail", ("it is to base 2, the spec's is e",))
    assert judge_numbers("lse1", y * np.log(2), y, allowed, "2").notes == ("it is to base e, the spec's is 2",)
    assert judge_numbers("lse1", y + 3, y, allowed, "e").notes == ()
    finite = np.where(np.isinf(y), 0.0, y)
    assert judge_numbers("lse1", finite, y, allowed).statistics[0].at == (0, 0, 1)


def test_a_log_sum_exp_without_the_sink_is_refused() -> None:
    spec = small("attention", sinks=True)
    inputs = draw(spec, dtype=np.float32)
    without = truth(spec.replace(sinks=False), {n: x for n, x in inputs.items() if n != "sinks"}, want=("lse",)).lse
    verdict = budget(spec, inputs, "float32").judge({"lse": without})
    assert verdict.status == "fail"


def _verdict(*states: str) -> Verdict:
    row = Statistic("row", float("inf"), 3.0, (0, 1), "rms(e_r) / E_r")
    return Verdict({f"x{i}": TensorVerdict(f"x{i}", s, (row,), ("because",)) for i, s in enumerate(states)}, "bfloat16")


def test_json_holds_it() -> None:
    found = json.loads(json.dumps(_verdict("pass", "fail").to_dict(), allow_nan=False))
    assert found["status"] == "fail"
    assert found["tensors"]["x1"]["statistics"]["row"] == {
        "value": "inf",
        "limit": 3.0,
        "at": [0, 1],
        "what": "rms(e_r) / E_r",
    }


def test_words_come_before_numbers() -> None:
    whole = "\n".join(
        (
            "fail, judged as bfloat16; numbers are value/limit; value ≤ limit passes",
            "  x0           fail",
            "      because",
            "      row inf/3",
        )
    )
    assert str(_verdict("fail")) == whole
