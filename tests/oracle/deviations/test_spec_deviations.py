"""Every deviation of a field is possible for some spec, changes it, and has a row where it has a link."""

from __future__ import annotations

import pytest

from refdiff.oracle.deviations.deviation import Deviation, deviated, output
from refdiff.oracle.deviations.spec_deviations import PRESET_DEVIATIONS, SPEC_DEVIATIONS
from refdiff.oracle.mistakes import ROWS
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.presets import PRESETS, YARN
from tests.oracle.example_inputs import draw, small

SPECS = [
    *(small(name) for name in PRESETS),
    small("hf_diffllama", group_order="tiled", softcap=2.0, window=3, causal="top_left", masked_rows="uniform"),
    small("attention", group_order="tiled", v_head_dim=4, sinks=True),
    small("hf_diffllama", norm_over="all_heads", norm_eps=1e-6),
    small("hf_diffllama", partial_rotary_factor=0.7, rotary_at="last"),
    small("hf_diffllama", rope_parameters=YARN, scale=0.3),
    small("hf_diffllama", qk_norm="rms", qk_norm_weight=True, lambda_per_head=True, gate="sigmoid"),
    small("ms_v1", qk_norm="layer", qk_norm_at="after_rope", norm="layer", norm_bias=True, norm_per_head=True),
    small("ms_v1", gate="linear"),
]


@pytest.mark.parametrize("deviation", [*SPEC_DEVIATIONS, *PRESET_DEVIATIONS], ids=str)
def test_is_another_spec_somewhere(deviation: Deviation) -> None:
    found = 0
    for spec in SPECS:
        problem = deviated(spec, draw(spec), [deviation])
        if problem is not None:
            assert problem.spec != spec
            assert problem.spec.heads == spec.heads
            assert output(problem) is not None
            found += 1
    assert found
    assert deviation.what.endswith(".")
    assert deviation.link == (ROWS[deviation.row].link if deviation.row else "")


def named(spec: Spec, name: str) -> Spec | None:
    deviation = next(d for d in (*SPEC_DEVIATIONS, *PRESET_DEVIATIONS) if d.name == name)
    problem = deviated(spec, draw(spec), [deviation])
    return None if problem is None else problem.spec


def test_some_by_hand() -> None:
    hf, gda = small("hf_diffllama"), small("gda")
    assert named(hf, "the_other_pairing") == hf.replace(pairing="interleaved")
    assert named(gda, "the_other_pairing") is None
    assert named(gda, "signals_and_noises_in_the_other_order") == gda.replace(pairing="halves")
    assert named(small("ms_v1", window=3), "window_one_less") == small("ms_v1", window=2)
    assert named(small("ms_v1", scale=2.0), "powers_of_two_for_those_of_e") is not None
    v2 = small("diff_v2")
    assert named(v2, "a_norm_where_none_is") == v2.replace(norm="rms")


def test_weights_of_one_source_in_the_code_of_another() -> None:
    hf = small("hf_diffllama")
    assert named(hf, "wired_as_in_ms_v1") == hf.replace(pairing="interleaved", values="wide", rope="interleaved")
    assert named(hf, "wired_as_in_hf_diffllama") is None
    assert "wired_as_in_diff_v2" not in {d.name for d in PRESET_DEVIATIONS}
