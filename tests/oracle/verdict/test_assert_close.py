"""The message of a failing test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, assert_close, truth
from refdiff.oracle.inputs.sequences import Inputs
from tests.oracle.example_inputs import draw, small

SPEC = small("hf_diffllama")


def test_silence_after_a_pass(x: Inputs) -> None:
    assert_close(truth(SPEC, x).out, SPEC, x, recipe="float32")


def test_row_and_name_of_the_mistake(x: Inputs) -> None:
    wrong = truth(SPEC.replace(rope="interleaved"), x).out
    with pytest.raises(AssertionError) as caught:
        assert_close(wrong, SPEC, x, recipe="float32")
    text = str(caught.value)
    assert "rows are wrong" in text
    assert "(b " in text
    assert "diagnosis:" in text
    assert "the_other_pairs_turn" in text.partition("diagnosis:")[2]
    with pytest.raises(AssertionError) as without:
        assert_close({"out": wrong}, SPEC, x, recipe="float32", diagnose=False)
    assert "diagnosis" not in str(without.value)


def test_a_function_is_called_once_and_its_mistake_named(x: Inputs) -> None:
    calls: list[Spec] = []

    def kernel(spec: Spec, inputs: Mapping[str, Any]) -> Any:
        calls.append(spec)
        return truth(spec.replace(rope="interleaved"), inputs).out

    with pytest.raises(AssertionError, match="the_other_pairs_turn"):
        assert_close(kernel, SPEC, x, recipe="float32")
    assert calls == [SPEC]


def test_gradients_alone() -> None:
    spec = small("diff_v2")
    x = draw(spec, dtype=np.float32)
    dout = np.ones((2, spec.heads, 5, spec.out_dim), dtype=np.float32)
    grads = truth(spec, x, dout=dout).grads
    assert_close({"dk": grads["k"]}, spec, x, recipe="float32", dout=dout)
    with pytest.raises(AssertionError, match="dk           fail") as caught:
        assert_close({"dk": -grads["k"]}, spec, x, recipe="float32", dout=dout)
    assert "dk is -1 times what it should be" in str(caught.value).partition("diagnosis:")[2]


def test_an_output_of_zeros_may_not_have_been_written(x: Inputs) -> None:
    with pytest.raises(AssertionError, match="an output that nothing was written to looks the same"):
        assert_close(np.zeros_like(truth(SPEC, x).out), SPEC, x, recipe="float32")


def test_where_the_run_went_wrong(x: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    from refdiff.oracle import divergence

    monkeypatch.setattr(divergence, "first_divergence", lambda mine, ref: f"{mine} against {ref}")
    with pytest.raises(AssertionError, match="first divergence: mine against theirs"):
        assert_close(-truth(SPEC, x).out, SPEC, x, recipe="float32", diagnose=False, traces=("mine", "theirs"))
