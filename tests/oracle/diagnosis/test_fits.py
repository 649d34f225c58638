"""Numbers that no name has are fitted, and the output then passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle.budget import budget
from refdiff.oracle.diagnosis.fits import fits, passes, smallest
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Target
from refdiff.oracle.rounding import round_to
from refdiff.oracle.strategies.fixed import small_spec
from refdiff.oracle.strategies.structure import Structure
from refdiff.oracle.strategies.values import draw
from refdiff.oracle.truth import truth

SPEC = small_spec("hf_diffllama")


def target(order: list[int] | None = None, whisper: bool = False, **changes: Any) -> Target:
    """An output of the spec with another number, or with heads in another order; float32."""
    inputs = draw(SPEC, Structure(1, 9, 12), "whisper" if whisper else "identify", 3)
    out = truth(SPEC.replace(**changes), inputs).out
    assert out is not None
    return Target.of(round_to(out if order is None else out[:, order], "float32"), budget(SPEC, inputs, "float32"))


@pytest.mark.parametrize(
    ("field", "value", "whisper"),
    [("scale", 0.31, False), ("norm_eps", 3e-7, True), ("rope_theta", 700.0, False), ("window", 5, False)],
)
def test_a_number_is_found(field: str, value: float, whisper: bool) -> None:
    found = {f.parameter: f for f in fits(SPEC, (target(whisper=whisper, **{field: value}),))}
    assert found[field].fits
    assert found[field].value == pytest.approx(value, rel=1e-3)
    assert f"{value:.3g}"[:4] in found[field].text


def test_heads_in_another_order() -> None:
    order = [2, 0, 1, 5, 4, 3]
    found = {f.parameter: f for f in fits(SPEC, (target(order),))}
    assert found["heads"].value == order
    assert "(2, 0, 1, 5, 4, 3)" in found["heads"].text


def test_noise_has_no_fit() -> None:
    t = target()
    noise = np.random.default_rng(0).normal(size=t.actual.shape)
    assert fits(SPEC, (Target(t.inputs, noise, t.expected, t.rows, t.recipe),)) == ()


def test_all_targets_must_pass() -> None:
    t = target()
    assert passes(SPEC, Parts.of(SPEC, (t,)))[0]
    wrong = Target(t.inputs, 2 * t.actual, t.expected, t.rows, t.recipe)
    assert not passes(SPEC, Parts.of(SPEC, (t, wrong)))[0]


def test_the_smallest_value_of_a_function() -> None:
    x, y = smallest(lambda x: (x - 0.3) ** 2 + 1, np.linspace(-1, 1, 9))
    assert x == pytest.approx(0.3, abs=1e-6)
    assert y == pytest.approx(1)
    assert smallest(lambda x: x, np.linspace(0, 1, 5))[0] == pytest.approx(0, abs=1e-6)
