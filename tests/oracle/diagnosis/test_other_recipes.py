"""A right kernel that rounds more than its recipe says is told which recipe it has."""

from __future__ import annotations

import pytest

from refdiff.oracle import Recipe, diagnose
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.diagnosis.ranking import NONE_FITS
from refdiff.oracle.rounding.ensemble import evaluate, quantised
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from refdiff.oracle.strategies import Structure, draw

HF = small_spec("hf_diffllama")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "does"),
    [
        ("float32", "tf32"),
        ("float32", "bfloat16"),
        ("float16", "bfloat16"),
    ],
)
def test_a_right_kernel_that_rounds_more_than_its_recipe_says(said: str, does: str) -> None:
    recipe = Recipe.of(does)
    inputs = draw(HF, Structure(1, 24, 24), "natural", 3)
    out = evaluate(HF, quantised(inputs, recipe), recipe, HELD_OUT[0])["out"]
    found = diagnose(out, HF, inputs, recipe=said)
    assert found.status == NONE_FITS
    assert found.notes[0] == (
        f"it passes with recipe={does!r}: does your kernel round there, where {said!r} does not say so?"
    )


@pytest.mark.slow
def test_what_is_wrong_in_every_recipe_is_told_of_none() -> None:
    inputs = draw(HF, Structure(1, 24, 24), "natural", 3)
    out = evaluate(HF.replace(scale=0.31), quantised(inputs, Recipe()), Recipe(), HELD_OUT[0])["out"]
    assert not any("recipe=" in note for note in diagnose(out[..., ::-1], HF, inputs, recipe="float32").notes)
