"""What a log-sum-exp is under other conventions."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.truth import truth
from refdiff.oracle.verdict.lse_conventions import other_sums
from tests.oracle.example_inputs import draw, small


@pytest.mark.parametrize(("base", "other"), [("e", "2"), ("2", "e")])
@pytest.mark.parametrize("name", ["lse1", "lse2"])
def test_other_conventions(name: str, base: str, other: str) -> None:
    spec = small("hf_diffllama", lse_base=base)
    x = as_float64(spec, draw(spec, T=5, S=4))  # the first query sees nothing
    found = other_sums(spec, x, name)
    want = getattr(truth(spec, x), name)
    of_other = getattr(truth(spec.replace(lse_base=other), x), name)
    np.testing.assert_allclose(found[f"it is to base {other}, the spec's is {base}"], of_other, rtol=1e-12)
    unscaled = getattr(truth(spec.replace(scale=1.0), x), name)
    np.testing.assert_allclose(found["its scores were not scaled"], unscaled, rtol=1e-12)
    top = found["it is the row's largest score alone"]
    rest = found["it lacks the row's largest score, which was subtracted before the exponentials"]
    some = np.isfinite(want)
    assert (~some).any()
    np.testing.assert_allclose((top + rest)[some], want[some], rtol=1e-12)
    assert np.all(np.isneginf(rest[~some]))


def test_one_that_leaves_the_sink_out_is_told() -> None:
    spec = small("attention", sinks=True)
    inputs = draw(spec, dtype=np.float32)
    without = truth(spec.replace(sinks=False), {n: x for n, x in inputs.items() if n != "sinks"}, want=("lse",)).lse
    verdict = budget(spec, inputs, "float32").judge({"lse": without})
    assert verdict.status == "fail"
    assert verdict.tensors["lse"].notes == ("it leaves the sink out",)
