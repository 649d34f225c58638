"""The message of a failing test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from refdiff.oracle.spec import Spec
from refdiff.oracle.truth import truth
from refdiff.oracle.verdict.assert_close import assert_close
from tests.oracle.example_inputs import draw, small


def test_silence_after_a_pass() -> None:
    spec = small("hf_diffllama")
    x = draw(spec, dtype=np.float32)
    assert_close(truth(spec, x).out, spec, x, recipe="float32")


def test_row_and_name_of_the_mistake() -> None:
    spec = small("hf_diffllama")
    x = draw(spec, dtype=np.float32)
    wrong = truth(spec.replace(rope="interleaved"), x).out
    with pytest.raises(AssertionError) as caught:
        assert_close(wrong, spec, x, recipe="float32")
    text = str(caught.value)
    assert "rows are wrong" in text
    assert "(b " in text
    assert "diagnosis:" in text
    assert "the_other_pairs_turn" in text.partition("diagnosis:")[2]
    with pytest.raises(AssertionError) as without:
        assert_close({"out": wrong}, spec, x, recipe="float32", diagnose=False)
    assert "diagnosis" not in str(without.value)


def test_a_function_is_called_once_and_its_mistake_named() -> None:
    spec = small("hf_diffllama")
    x, calls = draw(spec, dtype=np.float32), []

    def kernel(spec: Spec, inputs: Mapping[str, Any]) -> Any:
        calls.append(spec)
        return truth(spec.replace(rope="interleaved"), inputs).out

    with pytest.raises(AssertionError, match="the_other_pairs_turn"):
        assert_close(kernel, spec, x, recipe="float32")
    assert calls == [spec]


def test_gradients_alone() -> None:
    spec = small("diff_v2")
    x = draw(spec, dtype=np.float32)
    dout = np.ones((2, spec.heads, 5, spec.out_dim), dtype=np.float32)
    grads = truth(spec, x, dout=dout).grads
    assert_close({"dk": grads["k"]}, spec, x, recipe="float32", dout=dout)
    with pytest.raises(AssertionError, match="dk           fail") as caught:
        assert_close({"dk": -grads["k"]}, spec, x, recipe="float32", dout=dout)
    assert "dk is -1 times what it should be" in str(caught.value).partition("diagnosis:")[2]


def test_an_output_of_zeros_may_not_have_been_written() -> None:
    spec = small("hf_diffllama")
    x = draw(spec, dtype=np.float32)
    with pytest.raises(AssertionError, match="an output that nothing was written to looks the same"):
        assert_close(np.zeros_like(truth(spec, x).out), spec, x, recipe="float32")


def test_where_the_run_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from refdiff.oracle import divergence

    monkeypatch.setattr(divergence, "first_divergence", lambda mine, ref: f"{mine} against {ref}")
    spec = small("hf_diffllama")
    x = draw(spec, dtype=np.float32)
    with pytest.raises(AssertionError, match="first divergence: mine against theirs"):
        assert_close(-truth(spec, x).out, spec, x, recipe="float32", diagnose=False, traces=("mine", "theirs"))
