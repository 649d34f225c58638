"""Is this right? `check` answers, and `assert_close` fails a test, with the place and the name of the mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.inputs.outputs import collect_outputs, dtype_warnings
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.resolve import describe_preset, resolve_spec
from refdiff.oracle.verdict.verdict import Verdict

LINES = 30
"""Of a diagnosis, 80 columns wide: its answer, the place, and three candidates with what they do and where it happened.
"""


def check(
    actual: Any,
    spec: Spec | str,
    inputs: Mapping[str, Any],
    *,
    recipe: Recipe | str,
    dout: Any = None,
    members: int = 6,
) -> Verdict:
    """Judge what your kernel computed from these inputs.

    Args:
        actual: an output, or a mapping with any of out, lse1, lse2, lambda_full (of plain attention out, lse) and, with
            `dout`, gradients under d and the input's name (dq, dk, dv, dlambda_q1, …); arrays of any library. A
            log-sum-exp in bfloat16 or float16 may be off by that type's rounding, in any other by float32's. Or a
            function that computes them: `kernel(spec, inputs)` or `kernel(inputs)`, each with `dout=None` beside where
            it gives gradients.
        spec: what it is meant to compute; or a preset's name, whose dimensions are then those of the inputs, and whose
            layer is 0. The verdict's notes say which these are.
        recipe: what the kernel rounds, or a type's name for the usual: "float32", "tf32", "bfloat16", "float16".
        dout: what the gradients were pulled back from, of the shape of the output.
        members: how many valid orders the budget is made of, 2 to 8.

    Raises:
        ValueError: inputs, shapes or names that do not fit `spec`.
        TypeError: something is no array, or a tuple or list of arrays in place of a mapping.
    """
    named, spec = spec, resolve_spec(spec, inputs)
    allowed = budget(spec, inputs, recipe, members=members, dout=dout)
    given = collect_outputs(actual, spec, inputs, dout)
    verdict = allowed.judge(given)
    judged = given if isinstance(given, Mapping) else {"out": given}
    types = dtype_warnings({name: x for name, x in judged.items() if name in allowed.tensors}, allowed.recipe)
    read = () if isinstance(named, Spec) else (describe_preset(named, spec),)
    verdict = replace(verdict, notes=(*verdict.notes, *types, *read))
    if dout is not None and not any(name.startswith("d") for name in verdict.tensors):
        note = "dout was given, but no gradient was judged"
        verdict = replace(verdict, notes=(*verdict.notes, note))
    return verdict


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
    actual = collect_outputs(actual, of, inputs, dout)
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
