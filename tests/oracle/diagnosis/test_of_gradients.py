"""Wrong gradients beside a right output get the name of the deviation that they are of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.backends import overlay
from refdiff.oracle.backward import backward
from refdiff.oracle.diagnosis import Ranking, diagnose
from refdiff.oracle.diagnosis.ranking import NONE_FITS
from refdiff.oracle.ensemble import evaluate, quantised
from refdiff.oracle.mistakes import Mistake, wrap
from refdiff.oracle.mistakes.in_backward import IN_BACKWARD
from refdiff.oracle.order import HELD_OUT
from refdiff.oracle.recipe import Recipe
from refdiff.oracle.rounded_layers import rounded_ops
from refdiff.oracle.rounding import round_to
from refdiff.oracle.strategies.fixed import Case, cases, small_spec

SPEC = small_spec("hf_diffllama")
NAMES = ("dq", "dk", "dv", "dlambda_q1")


def asked(case: Case, grads: dict[str, np.ndarray]) -> Ranking:
    given = {"out": gradients(case)["out"], **grads}
    return diagnose(given, case.spec, case.inputs, recipe=case.dtype, dout=case.dout)


def gradients(case: Case, **changes: Any) -> dict[str, np.ndarray]:
    """What a kernel gives, in an order that no budget is made of."""
    recipe = Recipe.of(case.dtype)
    assert case.dout is not None
    return evaluate(case.spec.replace(**changes), quantised(case.inputs, recipe), recipe, HELD_OUT[0], case.dout)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"causal": "none"}, "no_causal_mask"),
        ({"pairing": "interleaved"}, "neighbors_are_a_pair"),
        ({"values": "interleaved"}, "neighboring_values_joined"),
        ({"out_scale": "none"}, "scale_left_out"),
    ],
)
def test_gradients_of_another_spec(changes: dict[str, Any], name: str, dtype: str) -> None:
    case = cases("identify", 5, spec=SPEC, dtype=dtype)[1]
    wrong = gradients(case, **changes)
    found = asked(case, {n: wrong[n] for n in NAMES})
    assert found.status == NONE_FITS
    failed = [note.split()[4] for note in found.notes if note.startswith("the output is right, ")]
    assert len(failed) > 1
    assert found.notes[len(failed)].startswith(f"{', '.join(failed[:-1])} and {failed[-1]} are those of {name}")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda g: 0.5 * g, "dk is 0.5 times what it should be"),
        (lambda g: -g, "dk is -1 times what it should be"),
        (lambda g: g[:, ::-1], None),
    ],
)
def test_a_factor(wrong: Callable[[np.ndarray], np.ndarray], said: str | None) -> None:
    case = cases("identify", 5, spec=SPEC, dtype="float32")[1]
    right = gradients(case)
    found = asked(case, {"dq": right["dq"], "dk": wrong(right["dk"])})
    assert found.notes[0].startswith("the output is right, dk is not: ")
    assert list(found.notes[1:]) == ([said] if said else [])


def mistaken(case: Case, mistake: Mistake) -> dict[str, np.ndarray]:
    """What a kernel of the usual recipe gives whose derivative is mistaken: its sums in float32, its results stored."""
    recipe = Recipe.of(case.dtype)
    ops = overlay(rounded_ops(recipe, HELD_OUT[0]), wrap(mistake))
    with np.errstate(all="ignore"):
        found = backward(case.spec, quantised(case.inputs, recipe), case.dout.astype(np.float64), ops)
    return {f"d{n}": round_to(g, recipe.storage) for n, g in found.items()}


ALIKE = {"row_sums_left_out", "row_sums_of_the_difference"}
"""Before a norm ⟨g, O⟩ = 0 but for ε: no sums, and those of the difference, are one function there."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", ["hf_diffllama", "ms_v1"])
@pytest.mark.parametrize("mistake", IN_BACKWARD, ids=str)
def test_a_mistaken_derivative(mistake: Mistake, preset: str, dtype: str) -> None:
    case = cases("identify", 5, spec=small_spec(preset), dtype=dtype)[1]
    right, wrong = gradients(case), mistaken(case, mistake)
    found = asked(case, {n: wrong[n] for n in (*NAMES, "dlambda_q2")})
    print(found.notes)
    failed = [note.split()[4] for note in found.notes if note.startswith("the output is right, ")]
    assert failed
    said = found.notes[len(failed) :]
    assert len(said) == 1
    names = said[0].partition(" of ")[2]
    assert names.startswith(f"{mistake.name} (") or f" or {mistake.name} (" in names
    print(right)


def test_each_of_its_own() -> None:
    """The gradient of k sees the future, that of v is of other pairs."""
    case = cases("identify", 5, spec=SPEC, dtype="float32")[1]
    wrong = {"dk": gradients(case, causal="none")["dk"], "dv": gradients(case, pairing="interleaved")["dv"]}
    first, second = asked(case, wrong).notes[2:]
    assert first.startswith("dk is that of no_causal_mask (")
    assert second.startswith("dv is that of neighbors_are_a_pair (")


def test_right_gradients_and_noise_have_no_name() -> None:
    case = cases("identify", 5, spec=SPEC, dtype="bfloat16")[1]
    right = gradients(case)
    assert not [note for note in asked(case, {n: right[n] for n in NAMES}).notes if note.startswith("d")]
    noise = np.random.default_rng(0).normal(size=right["dq"].shape)
    assert len(asked(case, {"dq": noise}).notes) == 1
