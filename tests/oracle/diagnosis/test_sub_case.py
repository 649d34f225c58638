"""A part of a large case is the same rows of the whole, for nearly every deviation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Deviation, Recipe, Spec, deviations
from refdiff.oracle.deviations import Problem, output
from refdiff.oracle.deviations.deviation import output_with
from refdiff.oracle.diagnosis import sub_case
from refdiff.oracle.diagnosis.sub_case import OF_KEYS, acts_alike, furthest_off, reduced
from refdiff.oracle.diagnosis.variants import Target
from tests.oracle.example_inputs import draw, small


def whole(spec: Spec, T: int, S: int, **more: Any) -> Target:
    inputs = {**draw(spec, T=T, S=S), **more}
    right = output(Problem(spec, inputs))
    return Target(inputs, right.copy(), right, np.ones(right.shape[:-1]), Recipe.of("float32"))


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sub_case, "LARGE", 6000)


def unlike(spec: Spec, of: Target, part: Target, some: Iterable[Deviation]) -> list[str]:
    """Deviations that give in a part something else than in those rows of the whole."""
    found = []
    for d in some:
        there, here = (output_with(spec, t.inputs, [d]) for t in (of, part))
        same = there is here if there is None or here is None else np.allclose(there[part.at], here, rtol=0, atol=1e-10)
        found += [] if same else [d.name]
    return found


@pytest.mark.parametrize(("T", "S"), [(23, 23), (9, 23)])
def test_those_that_act_alike_do(T: int, S: int) -> None:
    spec = small("hf_diffllama")
    t = whole(spec, T, S)
    alike = [d for d in deviations(spec) if acts_alike(d)]
    assert len(alike) > 45
    assert unlike(spec, t, reduced(spec, t), alike) == []


@pytest.mark.parametrize(("T", "S"), [(23, 23), (20, 23)])
@pytest.mark.parametrize(("all_keys", "axes"), [(False, ()), (True, OF_KEYS)])
def test_deviations_act_alike_around_the_row_furthest_off(
    T: int, S: int, all_keys: bool, axes: tuple[str, ...]
) -> None:
    spec = small("hf_diffllama")
    t = whole(spec, T, S)
    t.actual[1, 2, 11] += 10
    part = furthest_off(spec, t, reduced(spec, t, 2000, all_keys=all_keys), all_keys=all_keys)
    assert part.at[2] == (slice(11, T) if all_keys else slice(8, 12))
    assert unlike(spec, t, part, (d for d in deviations(spec) if acts_alike(d) or d.axis in axes)) == []
