"""A deviation by itself: what it does not fit; those of fields, each for some spec."""

from __future__ import annotations

import pytest

from refdiff.oracle import Mistake
from refdiff.oracle.mistakes import LINKS
from refdiff.oracle.mistakes.in_spec import PRESET_DEVIATIONS, SPEC_DEVIATIONS
from refdiff.oracle.mistakes.kernel import deviated, output
from refdiff.oracle.mistakes.listed import EVERY
from refdiff.oracle.spec.presets import PRESETS, YARN
from tests.oracle.example_inputs import draw, small

BY_NAME = {d.name: d for d in EVERY}
HF, MS = small("hf_diffllama"), small("ms_v1")


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("no_output_norm_weight", HF),  # it has none
        ("window_one_too_short", HF),
        ("other_head_pairing", small("diff_v2")),  # refused by Spec
        ("sequences_not_separated", HF),  # there is one
        ("half_split_pairs", small("gda")),  # its layer gets heads in another order there
        ("v2_with_v1_norm", HF),
    ],
)
def test_deviations_that_a_spec_does_not_have(name: str, spec: object) -> None:
    assert deviated(spec, draw(spec), [BY_NAME[name]]) is None


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
def test_is_another_spec_somewhere(deviation: Mistake) -> None:
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
    assert deviation.link == (LINKS[deviation.row] if deviation.row else "")
