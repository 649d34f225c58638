"""`check` judges what a kernel computed; `assert_close` fails a test and says where and what the mistake is.

The steps of a check, each with its functions:

    spec      `resolve_spec`: a preset's name takes its dimensions from the inputs
    inputs    `check_inputs` checks names, dtypes and shapes; `quantise` rounds to the storage type once
    truth     `truth` computes output and gradients in float64, by `forward` and `backward`
    orders    `run_members` computes them as the recipe rounds, in ten valid orders of evaluation (`DRAWS`, `MEMBERS`);
              of a large output for a sample of queries only, which `estimate_rows` extends to all rows
    budget    `budget` makes E_r of each row from the errors of the orders (`errors_of_runs`, `row_floor`), their slope
              (`largest_slope`), and the allowances of sums, λ and log-sum-exps (`Budget.absolute`)
    verdict   `collect_outputs` calls the kernel; `judge` measures each tensor (`statistics`) and words what is beyond
              its limit (`judge_rows`, `judge_numbers`)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.diagnosis import diagnose as find_mistake
from refdiff.oracle.inputs import DATA, is_layer
from refdiff.oracle.inputs.arrays import any_array
from refdiff.oracle.inputs.outputs import collect_outputs, read_output
from refdiff.oracle.inputs.resolve import describe_preset, resolve_spec
from refdiff.oracle.inputs.validation import check_inputs
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.verdict.judge import check_shape
from refdiff.oracle.verdict.verdict import FAIL, Verdict

DIAGNOSIS_LINES = 30
"""Lines of a diagnosis that are shown: its answer, the place and three candidates, at 80 columns."""


def check(
    actual: Any,
    spec: Spec | str,
    inputs: Mapping[str, Any],
    *,
    recipe: Recipe | str | None = None,
    dout: Any = None,
) -> Verdict:
    """Judge what your kernel computed from these inputs.

    Args:
        actual: the output, an array of any library. Or a mapping with any of out, lse1, lse2, lambda_full (plain
            attention: out, lse) and, with `dout`, gradients named d + input (dq, dk, dv, dlambda_q1, …). Or the
            kernel: `kernel(spec, inputs)` or `kernel(inputs)`, with an argument `dout=None` if it computes gradients.
            A log-sum-exp in bfloat16 or float16 may have that type's rounding error, otherwise float32's.
        spec: what the kernel is meant to compute. A preset's name takes the dimensions of the inputs, in layer 0; the
            verdict's notes list them.
        recipe: where the kernel rounds, which has no default; or a type's name for the usual recipe: "float32", "tf32",
            "bfloat16", "float16".
        dout: gradient of the output, of the output's shape, from which the gradients were computed.

    Raises:
        ValueError: inputs, shapes or names do not fit `spec`.
        TypeError: a value is no array, or a tuple or list of arrays stands in place of a mapping.
    """
    given_spec, spec, recipe = spec, resolve_spec(spec, inputs), Recipe.of(recipe)
    if not callable(actual) or hasattr(actual, "shape"):
        _check_out_shape(actual, spec, inputs)
    allowed = budget(spec, inputs, recipe, dout=dout)
    outputs = collect_outputs(actual, spec, inputs, dout)
    verdict = allowed.judge(outputs)
    judged = outputs if isinstance(outputs, Mapping) else {"out": outputs}
    types = dtype_warnings({name: x for name, x in judged.items() if name in allowed.tensors}, allowed.recipe)
    dimensions = () if isinstance(given_spec, Spec) else (describe_preset(given_spec, spec),)
    notes = [*verdict.notes, *types, *dimensions]
    if verdict.status == FAIL:
        notes += _recipe_hints(inputs, recipe)
    if dout is not None and not any(name.startswith("d") for name in verdict.tensors):
        notes.append("dout was given, but no gradient was judged")
    return replace(verdict, notes=tuple(notes))


def dtype_warnings(found: Mapping[str, Any], recipe: Recipe) -> tuple[str, ...]:
    """Return a warning for each output whose dtype is not the recipe's storage type.

    float32 is accepted if the storage type holds all its numbers: NumPy has no bfloat16.
    """
    warnings = []
    for name, x in found.items():
        try:
            array = read_output(x, name)
        except (TypeError, ValueError):
            continue  # the judge reports it
        kind = str(array.dtype)
        if kind != recipe.storage and not (kind == "float32" and _holds(array, recipe.storage)):
            warnings.append(
                f"{name} came in {kind}, and the recipe {recipe.name!r} stores {recipe.storage}: cast it to the type "
                "of the inputs, or name the recipe of what the kernel does"
            )
    return tuple(warnings)


def _holds(x: NDArray[Any], storage: str) -> bool:
    """Whether the storage type has all numbers of an array."""
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = x.astype(np.float64)
        return np.array_equal(round_to(numbers, storage), numbers, equal_nan=True)


def _recipe_hints(inputs: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return what may make a recipe the wrong one for a kernel that fails."""
    hints = []
    data = [any_array(inputs[name], name) for name in DATA if name in inputs]
    if recipe.storage == "float32" and all(_holds(x, "bfloat16") for x in data):
        hints.append("the inputs hold values of bfloat16: if the kernel computes in bfloat16, give recipe='bfloat16'")
    if recipe.storage == "bfloat16" and os.environ.get("TRITON_INTERPRET") == "1":
        hints.append("TRITON_INTERPRET is set: Triton's interpreter truncates to bfloat16, where GPUs round to nearest")
    return hints


def _check_out_shape(actual: Any, spec: Spec, inputs: Mapping[str, Any]) -> None:
    """Check the shape of the output before the budget is computed, which may take minutes."""
    out = actual.get("out") if isinstance(actual, Mapping) else actual
    lengths = check_inputs(spec, {name: any_array(x, name) for name, x in inputs.items()})
    if out is not None:
        axes = "BTD" if is_layer(inputs) else "BhTe"
        check_shape("out", read_output(out).shape, tuple(lengths[a] for a in axes))


def assert_close(
    actual: Any,
    spec: Spec | str,
    inputs: Mapping[str, Any],
    *,
    recipe: Recipe | str | None = None,
    dout: Any = None,
    diagnose: bool = True,
) -> None:
    """Fail a test unless `check` passes; an inconclusive check fails it too.

    Args:
        actual, spec, inputs, recipe, dout: as `check` takes them.
        diagnose: compare a failing output with those of known mistakes, which takes seconds.

    Raises:
        AssertionError: the check did not pass. The message has the verdict and the diagnosis.
        ValueError, TypeError: as `check`.
    """
    resolved, recipe = resolve_spec(spec, inputs), Recipe.of(recipe)
    actual = collect_outputs(actual, resolved, inputs, dout)
    verdict = check(actual, spec, inputs, recipe=recipe, dout=dout)
    if verdict:
        return
    parts = [str(verdict)]
    if diagnose and verdict.status == "fail":
        parts.append(_diagnosis(actual, resolved, inputs, recipe, dout))
    raise AssertionError("\n".join(parts))


def _diagnosis(actual: Any, spec: Spec, inputs: Mapping[str, Any], recipe: Recipe, dout: Any) -> str:
    try:
        ranking = find_mistake(actual, spec, inputs, recipe=recipe, dout=dout)
    except (ValueError, ArithmeticError) as error:  # the verdict stands without a diagnosis
        return f"diagnosis: none ({error})"
    return "diagnosis: " + "\n".join(str(ranking).splitlines()[:DIAGNOSIS_LINES])
