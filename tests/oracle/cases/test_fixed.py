"""Lists of cases: the same each time, for every preset or for one's own spec."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import cases, truth
from refdiff.oracle.cases.fixed import PROFILES, small_spec
from refdiff.oracle.cases.values import ALIASES
from refdiff.oracle.inputs.validation import check_inputs
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.strategies import structures
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


def test_names_have_the_sizes() -> None:
    """Of every profile, and of sizes of your own, of which two have the same place in their lists."""
    spec = small("ms_v1")
    sizes = {p: [case.name.removeprefix(f"{p}-").split("-", 1)[1] for case in cases(p, spec=spec)] for p in PROFILES}
    assert sizes["modules"][3:] == ["5x16x16-float32-0", "layer-2x11x11-float32-0", "layer-1x3x14-float32-0"]
    assert sizes["layout"][:2] == ["packed-5x5x7-float32-0", "layer-packed-3x9x9-float32-0"]
    assert sizes["serving"][1] == "paged-3x9x20-float32-0"
    assert sizes["tiles"][9] == "1x5x257-float32-0"
    windowed = cases("tiles", spec=spec.replace(window=11))[9]
    assert (windowed.name, windowed.inputs["k"].shape[2]) == ("tiles-9-1x5x204-float32-0", 204)
    own = [cases("natural", spec=spec, queries=n)[0].name for n in (64, 128)]
    assert own == ["natural-0-1x64x64-float32-0", "natural-0-1x128x128-float32-0"]


def test_a_presets_name_for_a_spec() -> None:
    (named, _), (small_one, _) = cases("natural", 3, spec="gda"), cases("natural", 3, spec=small_spec("gda"))
    assert (named.name, named.spec) == (small_one.name, small_one.spec)
    np.testing.assert_array_equal(named.inputs["q"], small_one.inputs["q"])
    with pytest.raises(ValueError, match="no preset is called 'atention', did you mean 'attention'"):
        cases("natural", spec="atention")


def test_a_case_knows_what_it_is_blind_to() -> None:
    one_token = cases("degenerate", spec=small_spec("hf_diffllama"))[0]
    assert "rope_left_out" in {d.name for d in one_token.blind_to}


def test_an_unknown_profile() -> None:
    for drawn in (cases, structures):
        with pytest.raises(ValueError, match="no profile is called 'hard': there are natural, discriminating"):
            drawn("hard")


def test_printed_in_short() -> None:
    case = cases("discriminating", spec=small_spec("hf_diffllama"), dtype="bfloat16")[1]
    assert repr(case).startswith(f"Case('{case.name}', q (2, 12, 11, 16) bfloat16, k (2, 4, 11, 16) bfloat16, ")
    assert len(repr(case)) < 500
    assert str(case) == case.name


@pytest.mark.parametrize(("old", "new"), ALIASES.items())
def test_former_names_of_profiles(old: str, new: str) -> None:
    spec = small_spec("hf_diffllama")
    for former, case in zip(cases(old, 1, spec=spec), cases(new, 1, spec=spec), strict=True):
        assert former.name == case.name
        assert former.name.startswith(new)
        np.testing.assert_array_equal(former.inputs["lambda_q1"], case.inputs["lambda_q1"])
