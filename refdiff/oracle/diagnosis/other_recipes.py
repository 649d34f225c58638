"""A right kernel of another recipe: it rounds what yours says it does not."""

from __future__ import annotations

from collections.abc import Sequence

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.diagnosis.variants import Target
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.verdict.verdict import PASS

COARSER = {"float32": ("tf32", "float16", "bfloat16"), "float16": ("bfloat16",), "bfloat16": ()}
"""By storage type, the recipes that round more, the finest first."""


def matching_recipe(spec: Spec, recipe: Recipe, targets: Sequence[Target]) -> str | None:
    """Say with which coarser recipe the outputs pass, the finest such one; None where there is none.

    Only what no deviation and no number explains is asked: a small mistake hides in the roundings of a coarser type.
    """
    for name in COARSER[recipe.storage]:
        other = Recipe.of(name)
        known = [(t, budget(spec, t.inputs, other, members=4)) for t in targets if other != recipe]
        if known and all(b.judge({"out": t.actual}).status == PASS for t, b in known):
            return (
                f"it passes with recipe={name!r}: does your kernel round there, where {recipe.name!r} does not say so?"
            )
    return None
