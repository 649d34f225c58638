"""Lists of cases, their numbers and their layouts in memory."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec, budget, cases, truth
from refdiff.oracle.cases.fixed import PROFILES, small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import VALUES
from refdiff.oracle.cases.values import draw as draw_values
from refdiff.oracle.inputs.validation import check_inputs
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT, Order
from refdiff.oracle.spec.presets import PRESETS
from tests.oracle.example_inputs import small


@pytest.mark.parametrize("profile", PROFILES)
def test_every_case_has_a_truth(profile: str) -> None:
    spec = small("ms_v1")
    found = cases(profile, spec=spec, dtype="float16")
    assert len(found) == len(PROFILES[profile][1])
    for case in found:
        check_inputs(case.spec, case.inputs)
        result = truth(case.spec, case.inputs, dout=case.dout, want=("out",))
        assert result.out.shape == case.dout.shape
        assert np.isfinite(result.out).all()
        assert case.dout.dtype == np.float16


def test_names_and_presets() -> None:
    found = cases("discriminating", 3, spec="hf_diffllama")
    assert len({case.name for case in found}) == len(found) == 4
    assert str(found[0]) == "discriminating-0-2x9x14-float32-3"
    assert cases("discriminating", spec=small("ms_v1"))[0].name == "discriminating-0-2x9x14-float32-0"
    again = cases("discriminating", 3, spec="hf_diffllama")
    assert all(np.array_equal(a.inputs[n], b.inputs[n]) for a, b in zip(found, again, strict=True) for n in a.inputs)
    assert np.array_equal(found[1].dout, again[1].dout)


def test_a_case_knows_what_it_is_blind_to() -> None:
    one_token = cases("degenerate", spec=small_spec("hf_diffllama"))[0]
    assert "no_rope" in {d.name for d in one_token.blind_to}


def test_an_unknown_profile() -> None:
    with pytest.raises(ValueError, match="no profile is called 'hard': there are natural, discriminating"):
        cases("hard", spec="ms_v1")


# The numbers of each profile: finite truths, and scores that overflow float16 where a kernel scales too late

PLAIN = Structure(2, 6, 9)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", PRESETS)
def test_the_truth_of_all_is_finite_and_the_same_for_a_seed(name: str, values: str) -> None:
    spec = small(name)
    inputs = draw_values(spec, PLAIN, values, 4, "bfloat16")
    found = truth(spec, inputs)
    assert np.isfinite(found.out).all()
    again, other = draw_values(spec, PLAIN, values, 4, "bfloat16"), draw_values(spec, PLAIN, values, 5, "bfloat16")
    assert all(np.array_equal(x, again[n]) for n, x in inputs.items())
    assert not np.array_equal(inputs["q"], other["q"])
    lambda_ = found.lambda_full
    if spec.is_plain:
        assert lambda_ is None
        return
    if values == "cancellation":
        low, high = (0.8, 1.15) if spec.lambda_form == "exp" else (0.3, 1.0)
        assert low < lambda_.min() <= lambda_.max() < high
    if values == "discriminating" and spec.lambda_form == "exp":
        assert 0.33 < lambda_ < 0.87


def test_unknown_words() -> None:
    with pytest.raises(ValueError, match="values: got 'odd', expected one of natural"):
        draw_values(small("ms_v1"), PLAIN, "odd", 0)
    with pytest.raises(ValueError, match="dtype: got 'float8', expected one of float32"):
        draw_values(small("ms_v1"), PLAIN, "natural", 0, "float8")


@pytest.mark.parametrize("d", [16, 64, 96])
@pytest.mark.parametrize("structure", [Structure(2, 16, 24), Structure(1, 17, 17)])
def test_scores_that_are_scaled_after_the_product_overflow_float16(d: int, structure: Structure) -> None:
    spec = Spec.preset("hf_diffllama", query_heads=12, key_heads=4, head_dim=d, layer=2)
    allowed = budget(spec, draw_values(spec, structure, "extreme", 4, "float16"), "float16")
    after, before = (
        evaluate(spec, allowed.inputs, Recipe("float16", qk="float16"), Order("", scale_first=first))
        for first in (False, True)
    )
    assert not np.isfinite(after["out"][:, :, -1]).all()
    assert allowed.judge({"out": after["out"]}).status == "fail"
    assert np.isfinite(before["out"]).all()
    assert allowed.judge({"out": evaluate(spec, allowed.inputs, Recipe("float16"), HELD_OUT[3])["out"]})
