"""A deviation by itself: how it changes a problem, and what it does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.deviations.deviation import Deviation, Problem, deviated, equal, ops_with, output
from refdiff.oracle.deviations.listed import EVERY
from refdiff.oracle.mistakes import CATALOGUE
from tests.oracle.example_inputs import draw, small

BY_NAME = {d.name: d for d in EVERY}
HF, MS = small("hf_diffllama"), small("ms_v1")


def test_a_field_changes_the_spec_and_rereads_the_values() -> None:
    inputs = draw(MS)
    problem = deviated(MS, inputs, [BY_NAME["values_of_halves_side_by_side"]])
    assert problem is not None
    assert problem.spec == MS.replace(values="halves")
    assert problem.inputs["v"].shape == (2, 4, 7, 6)
    assert np.array_equal(problem.inputs["v"][:, 3], inputs["v"][:, 1, :, 6:])  # head 3 is the second half of head 1


def test_a_weight_that_is_left_out_is_no_input() -> None:
    problem = deviated(MS, draw(MS), [BY_NAME["weight_of_the_norm_left_out"]])
    assert problem is not None
    assert "norm_weight" not in problem.inputs
    assert output(problem) is not None


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("weight_of_the_norm_left_out", HF),  # it has none
        ("window_one_less", HF),
        ("the_other_pairing", small("diff_v2")),  # refused by Spec
        ("sequences_seen_together", HF),  # there is one
        ("halves_are_a_pair", small("gda")),  # its layer gets heads in another order there
        ("v2_with_the_norm_of_v1", HF),
    ],
)
def test_what_does_not_fit(name: str, spec: object) -> None:
    assert deviated(spec, draw(spec), [BY_NAME[name]]) is None  # type: ignore[arg-type]


def test_a_mistake_is_laid_over_the_layers() -> None:
    inputs = draw(HF)
    problem = deviated(HF, inputs, [BY_NAME["lambda_not_used"]])
    assert problem is not None
    assert [m.name for m in problem.mistakes] == ["lambda_not_used"]
    given = HF.replace(lambda_form="given")
    alone = {**{n: inputs[n] for n in ("q", "k", "v")}, "lambda_full": np.asarray(0.0)}
    assert np.array_equal(output(problem), output(Problem(given, alone)))


def test_several_one_after_another() -> None:
    inputs = {**draw(HF), "key_mask": np.array([[False] + [True] * 6] * 2)}
    three = [BY_NAME[n] for n in ("scale_left_out", "padding_seen", "rope_left_out")]
    problem = deviated(HF, inputs, three)
    assert problem is not None
    assert problem.spec == HF.replace(rope="none")
    assert "key_mask" not in problem.inputs
    assert deviated(HF, inputs, [BY_NAME["rope_left_out"], BY_NAME["rope_left_out"]]) is None


def test_the_same_mistakes_are_laid_over_once() -> None:
    some = CATALOGUE[:2]
    assert ops_with(some) is ops_with(some)
    assert ops_with(()) is ops_with(())


def test_what_cannot_work_has_no_output() -> None:
    def no_queries(spec: object, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**inputs, "q": inputs["q"][..., :3]}

    wrong = Deviation("half_a_query", "Queries of half the width.", "dims", arrays=no_queries)
    problem = deviated(HF, draw(HF), [wrong])
    assert problem is not None
    assert output(problem) is None
    assert str(wrong) == "half_a_query"


def test_outputs_of_one_function() -> None:
    x = np.array([1.0, np.nan, np.inf])
    assert equal(x, x * (1 + 1e-12))
    assert not equal(x, np.array([1.001, np.nan, np.inf]))
    assert not equal(x, np.array([1.0, 2.0, np.inf]))
    assert not equal(x, np.array([1.0, np.nan, 3.0]))
    assert not equal(x, x[:2])
    assert equal(None, None)
    assert not equal(x, None)
