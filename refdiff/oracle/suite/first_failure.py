"""What is said after the first case of a run that fails: how to get it again in Python, and what the mistake is called.

Later ones mostly have the same cause, and a diagnosis takes seconds.
"""

from __future__ import annotations

from typing import Any

from refdiff.oracle.cases.fixed import Case
from refdiff.oracle.rounding.recipe import Recipe

SMALL = 2**16
"""So many numbers the inputs may have for a diagnosis, which then takes some 10 s at most on one core."""

LINES = 12
"""Of a diagnosis, 80 columns wide: its answer and the nearest candidate."""


def is_small(case: Case) -> bool:
    """Whether a diagnosis of this case takes seconds."""
    return sum(x.size for x in case.inputs.values()) <= SMALL


def first_failure(case: Case, spec: str, recipe: Recipe, out: Any = None) -> str:
    """Return the lines of Python that make the case again, and what `diagnose` answers, with one deviation at a time.

    Args:
        case: of `cases`, with one spec.
        spec: what `REFDIFF_SPEC` holds.
        out: the output, where it is to be diagnosed.
    """
    seed, place = divmod(case.seed, 1000)
    lines = (
        "The first case that fails; to have it in Python:",
        "  from refdiff import oracle",
        "  from refdiff.oracle.conformance import spec_of",
        f"  spec = spec_of({spec!r})",
        f'  case = oracle.cases("{case.profile}", seed={seed}, spec=spec, dtype="{case.dtype}")[{place}]',
    )
    return "\n".join([*lines, *([] if out is None else [_diagnosis(case, recipe, out)])])


def _diagnosis(case: Case, recipe: Recipe, out: Any) -> str:
    from refdiff.oracle.diagnosis import diagnose

    try:
        found = diagnose(out, case.spec, case.inputs, recipe=recipe, max_deviations=1)
    except Exception as error:  # the verdict stands, whether it has a name or not
        return f"diagnosis: none ({type(error).__name__}: {error})"
    head = "diagnosis, one deviation at a time (oracle.diagnose tries pairs too):"
    return "\n".join([head, *str(found).splitlines()[:LINES]])
