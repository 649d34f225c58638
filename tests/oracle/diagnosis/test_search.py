"""The search: fewest deviations first, pairs of two axes, all targets together."""

from __future__ import annotations

import pytest

from refdiff.oracle.budget import budget
from refdiff.oracle.diagnosis import sub_case
from refdiff.oracle.diagnosis.search import search
from refdiff.oracle.diagnosis.variants import Target
from tests.oracle.diagnosis.outputs import kernel, named, pair_of_cases

BOTH = pair_of_cases("hf_diffllama", "bfloat16")
KNOWN = tuple(
    named("hf_diffllama", n)
    for n in ("layer_norm", "norm_by_the_sum_of_squares", "scale_left_out", "keys_crossed", "epsilon_of_1e-6")
)


def targets(*names: str) -> tuple[Target, ...]:
    made = []
    for case in BOTH:
        out = kernel(case, [named("hf_diffllama", n) for n in names])
        assert out is not None
        made.append(Target.of(out, budget(case.spec, case.inputs, "bfloat16", members=2)))
    return tuple(made)


def test_a_single_is_found_and_no_pair_is_looked_for() -> None:
    fitting, *_ = search(BOTH[0].spec, targets("layer_norm"), KNOWN, 2)
    assert [c.name for c in fitting] == ["layer_norm"]


def test_a_pair_is_found() -> None:
    of_two = targets("scale_left_out", "keys_crossed")
    assert search(BOTH[0].spec, of_two, KNOWN, 1)[0] == []
    fitting, closest, _ = search(BOTH[0].spec, of_two, KNOWN, 2)
    assert [c.name for c in fitting] == ["scale_left_out + keys_crossed"]
    assert closest[0].explains > 0.99


def test_what_one_target_hides_the_other_shows() -> None:
    loud, low = targets("epsilon_of_1e-6")
    assert search(BOTH[0].spec, (low,), KNOWN, 1)[0][0].name == "epsilon_of_1e-6"
    fitting, *_ = search(BOTH[0].spec, (loud, low), KNOWN, 1)
    assert [c.name for c in fitting] == ["epsilon_of_1e-6"]


def test_pairs_are_of_two_axes() -> None:
    of_one_axis = targets("layer_norm", "norm_by_the_sum_of_squares")
    assert search(BOTH[0].spec, of_one_axis, KNOWN[:2], 2)[0] == []


def test_a_large_case_is_searched_by_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sub_case, "LARGE", 20_000)
    fitting, *_ = search(BOTH[0].spec, targets("scale_left_out", "keys_crossed"), KNOWN, 2)
    assert [c.name for c in fitting] == ["scale_left_out + keys_crossed"]
    mask = named("hf_diffllama", "one_future_token_seen")
    fitting, *_ = search(BOTH[0].spec, targets("one_future_token_seen"), (*KNOWN, mask), 1)
    assert [c.name for c in fitting] == ["one_future_token_seen"]
