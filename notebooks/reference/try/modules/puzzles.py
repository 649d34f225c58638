"""Five kernels with one planted mistake each: `judge` asks refdiff's oracle about what the reader made of one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff import oracle

SPEC = oracle.Spec.preset(
    "hf_diffllama", query_heads=12, key_heads=4, head_dim=16, layer=3, rope="none", lambda_form="given"
)
solved: set[int] = set()
"""Numbers of puzzles whose kernel has passed."""


def given() -> dict[str, dict[str, Any]]:
    """Return the inputs that a kernel is judged on, by what they are: a text, and the end of one."""
    whole = oracle.cases("discriminating", spec=SPEC)[1].inputs
    return {"11 queries and 11 keys": whole, "the last 5 of 11 queries": {**whole, "q": whole["q"][:, :, -5:]}}


def judge(number: int, kernel: Callable[..., Any]) -> None:
    """Print what the oracle says of a kernel, and note a puzzle that is solved."""
    sys.stdout.write(f"Puzzle {number}: {_judged(number, kernel)}\n")


def _judged(number: int, kernel: Callable[..., Any]) -> str:
    for what, inputs in given().items():
        out = kernel(**{name: np.array(x) for name, x in inputs.items()})
        try:
            verdict = oracle.check(out, SPEC, inputs, recipe="float32")
        except (TypeError, ValueError) as error:  # no array, or one of another shape: the oracle says which
            return f"not solved. On {what} your kernel returned what cannot be judged:\n  {error}"
        if verdict.status == "pass":
            continue
        said = f"not solved. On {what} the oracle says: {verdict.status}\n  {verdict.tensors['out'].reasons[0]}"
        ranking = oracle.diagnose(out, SPEC, inputs, recipe="float32", max_deviations=1)
        if ranking.status == "unique":
            best = ranking.candidates[0].deviations[0]
            said += f"\n  It looks like {best.name}: {best.what}"
        return said
    solved.add(number)
    return "solved ✓ On both inputs every row is as near to the truth as float32 allows."
