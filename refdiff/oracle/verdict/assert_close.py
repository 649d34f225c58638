"""`check` for a test: nothing, or an AssertionError that says which row, since which point, and by what mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refdiff.oracle.inputs.outputs import outputs_of
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.resolve import resolve_spec
from refdiff.oracle.verdict.check import check

LINES = 30
"""Of a diagnosis, 80 columns wide: its answer, the place, and three candidates with what they do and where it happened.
"""


def assert_close(
    actual: Any,
    spec: Spec | str,
    inputs: Mapping[str, Any],
    *,
    recipe: Recipe | str,
    dout: Any = None,
    diagnose: bool = True,
    traces: tuple[Any, Any] | None = None,
) -> None:
    """Fail a test unless `check` passes; an inconclusive check fails it too.

    Args:
        actual, spec, inputs, recipe, dout: as `check` takes them.
        diagnose: whether a failing output is compared with what known mistakes would give, which takes seconds.
        traces: your run and refdiff's, as `first_divergence` takes them, to say where the first one went wrong.

    Raises:
        AssertionError: the verdict, then the first divergence, then up to three diagnoses.
        ValueError, TypeError: as `check`.
    """
    of = resolve_spec(spec, inputs)
    actual = outputs_of(actual, of, inputs, dout)
    verdict = check(actual, spec, inputs, recipe=recipe, dout=dout)
    if verdict:
        return
    parts = [str(verdict)]
    if traces is not None:
        from refdiff.oracle.divergence import first_divergence

        parts.append(f"first divergence: {first_divergence(*traces)}")
    if diagnose and verdict.status == "fail":
        parts.append(_diagnoses(actual, of, inputs, recipe, dout))
    raise AssertionError("\n".join(parts))


def _diagnoses(actual: Any, spec: Spec, inputs: Mapping[str, Any], recipe: Recipe | str, dout: Any) -> str:
    from refdiff.oracle.diagnosis import diagnose

    try:
        ranking = diagnose(actual, spec, inputs, recipe=recipe, dout=dout)
    except (ValueError, ArithmeticError) as error:  # the verdict stands, whether it has a name or not
        return f"diagnosis: none ({error})"
    return "diagnosis: " + "\n".join(str(ranking).splitlines()[:LINES])
