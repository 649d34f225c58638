"""Numbers that no name has are fitted, and the output then passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.oracle.budget.budget import budget
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.diagnosis.fits import fits, smallest
from refdiff.oracle.diagnosis.variants import Target
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding import round_to
from refdiff.oracle.truth import truth
from refdiff.oracle.truth.attention_operands import attention_operands
from refdiff.oracle.truth.forward import finished

SPEC = small_spec("hf_diffllama")


LIMIT = 2.5


def target(order: list[int] | None = None, whisper: bool = False, **changes: Any) -> Target:
    """An output of the spec with another number, or with heads in another order; float32."""
    inputs = draw(SPEC, Structure(1, 9, 12), "tiny_values" if whisper else "discriminating", 3)
    out = truth(SPEC.replace(**changes), inputs).out
    assert out is not None
    return Target.of(round_to(out if order is None else out[:, order], "float32"), budget(SPEC, inputs, "float32"))


def limited(limit: str, dtype: str) -> Target:
    """An output whose scores have a limit, computed here from the maps' definition."""
    inputs = draw(SPEC, Structure(1, 9, 12), "discriminating", 3, dtype)
    known = budget(SPEC, inputs, dtype)
    exact = as_float64(SPEC, known.inputs)
    s = attention_operands(SPEC, exact, ops_for())
    maps = []
    for q, k in ((s.q1, s.k1), (s.q2, s.k2)):
        z = q @ k.swapaxes(-1, -2) / SPEC.head_dim**0.5
        z = LIMIT * np.tanh(z / LIMIT) if limit == "smooth" else np.clip(z, -LIMIT, LIMIT)
        e = np.where(s.see, np.exp(z), 0.0)
        maps.append(e / e.sum(axis=-1, keepdims=True))
    heads = (maps[0] - s.lambda_full * maps[1]) @ s.v
    return Target.of(round_to(finished(SPEC, heads, exact, ops_for()), dtype), known)


@pytest.mark.parametrize(
    ("field", "value", "whisper"),
    [("scale", 0.31, False), ("norm_eps", 3e-7, True), ("rope_theta", 700.0, False), ("window", 5, False)],
)
def test_a_number_is_found(field: str, value: float, whisper: bool) -> None:
    found = {f.parameter: f for f in fits(SPEC, (target(whisper=whisper, **{field: value}),))}
    assert found[field].fits
    assert found[field].value == pytest.approx(value, rel=1e-3)
    assert f"{value:.3g}"[:4] in found[field].text
    assert "where the spec has " in found[field].text


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
@pytest.mark.parametrize("limit", ["smooth", "sharp"])
def test_a_limit_of_scores_is_found(limit: str, dtype: str) -> None:
    """Neither is right where the other is."""
    found = {f.parameter: f for f in fits(SPEC, (limited(limit, dtype),)) if f.fits}
    name = {"smooth": "softcap", "sharp": "score_limit"}[limit]
    assert list(found) == [name]
    assert found[name].value == pytest.approx(LIMIT, rel=0.02)
    assert "where the spec has no" in found[name].text


def test_lambda_alone_and_with_the_scale() -> None:
    """Of both together nothing is said where one does it; what the spec has is said."""
    (found,) = fits(SPEC, (target(lambda_base="constant", lambda_init=0.3, out_scale="none"),))
    assert (found.parameter, found.fits) == ("lambda_full", True)
    assert ", and the scale of the output is 1 in every head, where the spec has 0.5293" in found.text
    t = target()
    (found,) = fits(SPEC, (replace(t, actual=round_to(0.8 * t.expected, "float32")),))
    assert (found.parameter, found.value) == ("factor", pytest.approx(0.8))


def test_a_number_that_explains_nearly_all_is_shown_as_one_that_does_not_pass() -> None:
    """Noise of 5 % on an output of another scale of the scores: no kernel of that scale, but near it."""
    t = target(scale=0.31)
    apart = np.sqrt(np.mean((t.actual - t.expected) ** 2))
    noise = np.random.default_rng(0).normal(size=t.actual.shape)
    (found,) = fits(SPEC, (replace(t, actual=t.actual + 0.05 * apart * noise),))
    assert (found.parameter, found.fits) == ("scale", False)
    assert found.value == pytest.approx(0.31, rel=0.02)
    assert 0.99 < found.explains < 1
    assert "(does not pass: explains 99." in str(found)
    assert fits(SPEC, (replace(t, actual=t.actual + 0.2 * apart * noise),)) == ()


def test_heads_in_another_order() -> None:
    order = [2, 0, 1, 5, 4, 3]
    found = {f.parameter: f for f in fits(SPEC, (target(order),))}
    assert found["heads"].value == order
    assert "(2, 0, 1, 5, 4, 3)" in found["heads"].text


def test_noise_has_no_fit() -> None:
    t = target()
    noise = np.random.default_rng(0).normal(size=t.actual.shape)
    assert fits(SPEC, (Target(t.inputs, noise, t.expected, t.rows, t.recipe),)) == ()


def test_the_smallest_value_of_a_function() -> None:
    x, y = smallest(lambda x: (x - 0.3) ** 2 + 1, np.linspace(-1, 1, 9))
    assert x == pytest.approx(0.3, abs=1e-6)
    assert y == pytest.approx(1)
    assert smallest(lambda x: x, np.linspace(0, 1, 5))[0] == pytest.approx(0, abs=1e-6)
