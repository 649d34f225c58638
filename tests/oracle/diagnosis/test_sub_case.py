"""A part of a large case is the same rows of the whole, for nearly every deviation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec, deviations
from refdiff.oracle.deviations import Problem, deviated, output
from refdiff.oracle.diagnosis import sub_case
from refdiff.oracle.diagnosis.sub_case import Parts, acts_alike, cost, furthest_off, reduced
from refdiff.oracle.diagnosis.variants import Target
from tests.oracle.example_inputs import draw, small


def whole(spec: Spec, T: int, S: int, **more: Any) -> Target:
    inputs = {**draw(spec, T=T, S=S), **more}
    right = output(Problem(spec, inputs))
    return Target(inputs, right.copy(), right, np.ones(right.shape[:-1]), Recipe.of("float32"))


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sub_case, "LARGE", 6000)


@pytest.mark.parametrize(("T", "S"), [(23, 23), (9, 23)])
@pytest.mark.parametrize("name", ["hf_diffllama", "diff_v2", "gda"])
def test_the_part_is_those_rows(name: str, T: int, S: int) -> None:
    spec = small(name)
    rng = np.random.default_rng(0)
    more: dict[str, Any] = {"key_mask": np.arange(S)[None] >= np.array([[2], [0]]), "bias": rng.normal(size=(T, S))}
    more |= {"q_positions": rng.integers(0, 40, (1, T))}
    t = whole(spec, T, S, **more)
    part = reduced(spec, t)
    assert part.inputs["q"].shape[2] < T
    assert (part.at[2].start == 0) == (T == S)
    again = output(Problem(spec, part.inputs))
    assert np.allclose(again, t.actual[:1, :, part.at[2]], rtol=0, atol=1e-12)
    assert part.actual.shape == part.expected.shape == (1, spec.heads, again.shape[2], spec.out_dim)
    assert cost(spec, part.inputs) < cost(spec, t.inputs)


@pytest.mark.parametrize(("T", "S"), [(23, 23), (9, 23)])
def test_those_that_act_alike_do(T: int, S: int) -> None:
    spec = small("hf_diffllama")
    t = whole(spec, T, S)
    part = reduced(spec, t)
    alike = [d for d in deviations(spec) if acts_alike(d)]
    assert len(alike) > 45
    for d in alike:
        there, here = deviated(spec, t.inputs, [d]), deviated(spec, part.inputs, [d])
        assert (there is None) == (here is None)
        if there is not None and here is not None:
            a, b = output(there), output(here)
            assert np.allclose(a[:1, :, part.at[2]], b, rtol=0, atol=1e-10), d


def furthest(spec: Spec, t: Target, **how: bool) -> Target:
    usual = reduced(spec, t, 2000, **how)
    return furthest_off(spec, t, usual, **how)


@pytest.mark.parametrize(("T", "S"), [(23, 23), (20, 23)])
def test_deviations_act_alike_around_the_row_furthest_off(T: int, S: int) -> None:
    spec = small("hf_diffllama")
    t = whole(spec, T, S)
    t.actual[1, 2, 11] += 10
    for all_keys, axes in ((False, ()), (True, sub_case.OF_KEYS)):
        part = furthest(spec, t, all_keys=all_keys)
        assert part.at[2] == (slice(11, T) if all_keys else slice(8, 12))
        for d in deviations(spec):
            if acts_alike(d) or d.axis in axes:
                there, here = deviated(spec, t.inputs, [d]), deviated(spec, part.inputs, [d])
                assert (there is None) == (here is None), d
                if there is not None and here is not None:
                    a, b = output(there), output(here)
                    assert np.allclose(a[1:, :, part.at[2]], b, rtol=0, atol=1e-10), d


def test_parts_by_what_deviations_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sub_case, "TINY", 3000)
    spec = small("hf_diffllama")
    t = whole(spec, 23, 23)
    parts = Parts.of(spec, (t,))
    by_axis = {d.axis: d for d in deviations(spec)}
    norm, mask, triangle = by_axis["norm kind"], by_axis["mask off by one"], by_axis["concat"]
    assert parts.which([norm]) is parts.small
    assert parts.which([norm, mask]) is parts.last
    assert parts.which([mask, triangle]) is parts.whole
    little = Parts.of(spec, (whole(spec, 2, 2),))
    assert little.tiny is little.small is little.last is little.whole
    assert cost(spec, parts.tiny[0].inputs) < cost(spec, parts.small[0].inputs) < parts.cost
    last = parts.last[0]
    assert last.inputs["k"].shape[2] == 23
    T = last.inputs["q"].shape[2]
    for d in deviations(spec):
        if d.axis in sub_case.OF_KEYS:
            there, here = deviated(spec, t.inputs, [d]), deviated(spec, last.inputs, [d])
            if there is not None and here is not None:
                a, b = output(there), output(here)
                assert np.allclose(a[:1, :, -T:], b, rtol=0, atol=1e-10), d


def test_queries_from_the_top_left_are_not_reduced_where_keys_are_more() -> None:
    spec = small("hf_diffllama").replace(causal="top_left")
    assert reduced(spec, whole(spec, 9, 23)) is None
    assert reduced(spec, whole(spec, 23, 23)) is not None
