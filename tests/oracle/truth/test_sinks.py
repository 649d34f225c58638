"""Sinks where queries see no key: zeros, and log-sum-exps that are the sink."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import Spec, budget, cases, truth
from refdiff.oracle.truth.attention_operands import head_indices
from tests.oracle.example_inputs import draw, small


def test_with_sinks_a_query_that_sees_no_key_gives_zeros() -> None:
    spec = small("attention", sinks=True)
    inputs = draw(spec, T=5, S=3)
    found = truth(spec, inputs, dout=np.ones((2, 12, 5, 6)))
    assert not np.any(found.out[:, :, :2])
    assert np.array_equal(found.lse[:, :, :2], np.broadcast_to(inputs["sinks"][:, None], (2, 12, 2)))
    with pytest.raises(ValueError, match="masked_rows is 'nan', but with sinks"):
        spec.replace(masked_rows="nan")


@pytest.mark.parametrize(("profile", "number"), [("degenerate", 3), ("layout", 0), ("layout", 4)])
@pytest.mark.parametrize(
    "spec",
    [
        small("attention", sinks=True, softcap=2.0, lse_base="2"),
        small("ms_v1", sinks=True, qk_norm="rms"),
    ],
    ids=["attention", "ms_v1"],
)
def test_with_sinks_the_log_sum_exp_of_no_keys_at_all_is_the_sink(spec: Spec, profile: str, number: int) -> None:
    """Dense without keys, and packed and paged with a sequence that has none: as where a mask hides every key."""
    case = cases(profile, spec=spec)[number]
    found, heads = truth(spec, case.inputs, dout=case.dout), head_indices(spec)
    sinks = case.inputs["sinks"] / np.float64(np.log(2) if spec.lse_base == "2" else 1)
    rows = np.concatenate([np.full(q, k == 0) for q, k in case.structure.sequences or ((3, 0),)])
    for name, of_map in zip(spec.lse_names, (heads.q1, heads.q2), strict=False):
        lse = np.moveaxis(getattr(found, name), 1, -1).reshape(-1, spec.heads)
        assert np.array_equal(np.all(np.isclose(lse, sinks[of_map], rtol=0, atol=1e-12), axis=-1), rows)
    allowed = budget(spec, case.inputs, "float32")
    assert allowed.judge({name: getattr(found, name) for name in spec.lse_names}).status == "pass"
    verdict = allowed.judge({name: np.where(rows.any(), -np.inf, getattr(found, name)) for name in spec.lse_names})
    assert verdict.status == "fail"


@pytest.mark.parametrize("profile", ["degenerate", "layout"])
def test_log_sum_exps_with_sinks_are_numbers(profile: str) -> None:
    for case in cases(profile, spec=small("ms_v1", sinks=True)):
        found = truth(case.spec, case.inputs)
        assert np.isfinite(found.lse1).all(), case
        assert np.isfinite(found.lse2).all(), case
