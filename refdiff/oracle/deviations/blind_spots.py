"""What an input cannot show: the deviations whose effect on it is nothing, or less than rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.deviations.deviation import Deviation, Problem, equal, output, output_with
from refdiff.oracle.deviations.listed import deviations
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.resolve import resolve_spec

Numpy = np.ndarray[Any, Any]


def blind_spots(
    spec: Spec | str,
    inputs: Mapping[str, Any],
    recipe: Recipe | str | None = None,
    *,
    known: Budget | None = None,
) -> tuple[Deviation, ...]:
    """Return the deviations that a test on these inputs lets pass.

    They are those that a spec of the same choices can have, with grouped queries, depth and so on: an input of one
    token, or as many keys as queries, is blind to what such a spec would show.

    Args:
        spec: as in `truth`.
        recipe: what the kernel rounds; None asks for what is hidden even without any rounding.
        known: the budget of these inputs, if you have it.

    Raises:
        ValueError: inputs that do not fit `spec`.
    """
    spec = resolve_spec(spec, inputs)
    exact = as_float64(spec, inputs)
    allowed = known if known is not None or recipe is None else budget(spec, inputs, recipe)
    if allowed is not None:
        exact = {**exact, **as_float64(spec, allowed.inputs)}
    right = output(Problem(spec, exact))
    blind = []
    for deviation in deviations(revealing(spec), kind_of(exact)):
        wrong = output_with(spec, exact, [deviation])
        if wrong is None or right is None or not _is_seen(wrong, right, allowed):
            blind.append(deviation)
    return tuple(blind)


def _is_seen(wrong: Numpy, right: Numpy, allowed: Budget | None) -> bool:
    if allowed is None or wrong.shape != right.shape:
        return not equal(wrong, right)
    return allowed.judge({"out": wrong}).status == "fail"


def revealing(spec: Spec) -> Spec:
    """The same choices with dimensions in which each of them is seen: three queries to a key, depth, wider heads."""
    groups = max(2, spec.key_groups)
    key_heads = groups if spec.keys == "shared" else 2 * groups
    return spec.replace(
        query_heads=3 * groups * (1 if spec.is_plain else spec.ratio + 1),
        key_heads=key_heads,
        head_dim=max(spec.head_dim + spec.head_dim % 2, 8),
        layer=max(spec.layer, 1),
    )
