"""Verdicts of single tensors, and their words; a log-sum-exp to the other base."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from refdiff.oracle import budget, truth
from refdiff.oracle.budget.statistics import RowBudget, Statistic
from refdiff.oracle.verdict.judge import check_shape, judge_numbers, judge_rows
from refdiff.oracle.verdict.verdict import TensorVerdict, Verdict
from tests.layers.inputs import says
from tests.oracle.example_inputs import draw, row_budget, small


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


@pytest.mark.parametrize(
    ("name", "shape", "right", "hint"),
    [
        ("out", (2, 5, 3, 8), (2, 5, 24), ": the size is right, but a layer's out is (B, T, D), the output of o_proj"),
        ("lse1", (2, 5, 3), (2, 3, 5), ": if it is (B, T, h), .transpose(0, 2, 1) puts it right"),
        ("out", (5, 3, 8), (1, 3, 5, 8), ": if it is (T, h, e), .transpose(1, 0, 2)[None] puts it right"),
        ("dq", (12, 4, 8), (1, 4, 12, 8), ": if it is (T, H, d), .transpose(1, 0, 2)[None] puts it right"),
        ("dx", (4, 3, 20), (2, 5, 24), ": the size is right, but the layout is another; it must be (B, T, D)"),
        ("dq_proj.weight", (4, 6), (6, 4), ": if it is (D, Hd), .transpose(1, 0) puts it right"),
        ("dlambda_q1", (1, 6), (6,), ": .reshape(6,) puts it right"),
    ],
)
def test_hints_are_those_of_the_tensor(name: str, shape: tuple[int, ...], right: tuple[int, ...], hint: str) -> None:
    with says(ValueError, f"{name}: got shape {shape}, expected {right}{hint}"):
        check_shape(name, shape, right)


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
