"""The deviations of plain attention have names of their own."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import Spec, cases, deviations, diagnose
from refdiff.oracle.deviations.deviation import output_with
from refdiff.oracle.inputs.validation import as_float64

SPEC = Spec.preset(
    "attention", query_heads=6, key_heads=2, head_dim=8, v_head_dim=12, sinks=True, softcap=3.0, rope="halves"
)


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
