"""Lists of cases: the same each time, and the truth of each is finite."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import cases, truth
from refdiff.oracle.cases.fixed import PROFILES, small_spec
from refdiff.oracle.inputs.validation import check_inputs
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
    found = cases("discriminating", 3)
    assert len({case.name for case in found}) == len(found) == 4 * len(PRESETS)
    assert str(found[0]) == "discriminating-hf_diffllama-0-2x9x14-float32-3"
    assert cases("discriminating", spec=small("ms_v1"))[0].name == "discriminating-0-2x9x14-float32-0"
    again = cases("discriminating", 3)
    assert all(np.array_equal(a.inputs[n], b.inputs[n]) for a, b in zip(found, again, strict=True) for n in a.inputs)
    assert np.array_equal(found[1].dout, again[1].dout)


def test_a_case_knows_what_it_is_blind_to() -> None:
    one_token = cases("degenerate", spec=small_spec("hf_diffllama"))[0]
    assert "no_rope" in {d.name for d in one_token.blind_to}


def test_an_unknown_profile() -> None:
    with pytest.raises(ValueError, match="no profile is called 'hard': there are natural, discriminating"):
        cases("hard")
