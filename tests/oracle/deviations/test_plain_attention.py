"""The deviations of plain attention: in words that its author knows, and its own are found."""

from __future__ import annotations

import re

import numpy as np
import pytest

from refdiff.oracle import Spec, cases, deviations, diagnose
from refdiff.oracle.deviations.deviation import output_with
from refdiff.oracle.deviations.listed import KINDS
from refdiff.oracle.inputs.validation import as_float64

SPEC = Spec.preset(
    "attention", query_heads=6, key_heads=2, head_dim=8, v_head_dim=12, sinks=True, softcap=3.0, rope="halves"
)


@pytest.mark.parametrize("kind", KINDS)
def test_they_speak_of_one_map(kind: str) -> None:
    found = deviations(SPEC, kind)
    assert len(found) >= 28
    for deviation in found:
        said = f"{deviation.name} {deviation.what}".replace("the_first_of_a_pair_turns", "").replace("in pairs", "")
        assert not re.search(r"λ|lambda|streams?\b|both maps|second map|key pair|A₁|S₁", said), said


@pytest.mark.parametrize(
    "name",
    [
        *("sinks_left_out", "sinks_scaled", "sinks_to_base_2", "sinks_of_zero", "sinks_of_key_heads"),
        *("softcap_before_the_scale", "scale_of_the_width_of_values", "key_heads_tiled", "scores_not_scaled"),
    ],
)
def test_each_is_named(name: str) -> None:
    case = cases("discriminating", seed=3, spec=SPEC, dtype="bfloat16")[1]
    (deviation,) = (d for d in deviations(SPEC) if name in (d.name, *d.aliases))
    wrong = output_with(SPEC, as_float64(SPEC, case.inputs), [deviation])
    found = diagnose(wrong.astype(np.float32), SPEC, case.inputs, recipe="bfloat16", max_deviations=1)
    assert found.status == "unique"
    assert found.candidates[0].name == deviation.name
    assert "λ" not in str(found)


def test_scale_and_softcap_by_hand() -> None:
    inputs = as_float64(SPEC, cases("discriminating", seed=4, spec=SPEC)[1].inputs)
    before = {d.name: d for d in deviations(SPEC)}
    other = SPEC.replace(scale=12**-0.5)
    of_values = output_with(SPEC, inputs, [before["scale_of_the_width_of_values"]])
    assert np.array_equal(of_values, output_with(other, inputs, []))
    capped = output_with(SPEC, inputs, [before["softcap_before_the_scale"]])
    assert np.array_equal(capped, output_with(SPEC.replace(softcap=3.0 * 8**-0.5), inputs, []))
    usual = SPEC.replace(v_head_dim=None, softcap=None)
    assert not {"scale_of_the_width_of_values", "softcap_before_the_scale"} & {d.name for d in deviations(usual)}
