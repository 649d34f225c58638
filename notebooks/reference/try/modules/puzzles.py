"""Five kernels with one planted mistake each: `judge` asks refdiff's oracle about what the reader made of one."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Judgment:
    """What `judge` found: in a page, the name of the mistake stands behind "Show a hint"."""

    text: str
    hint: str = ""

    def __repr__(self) -> str:
        return self.text + (f"\n  Hint: {self.hint}" if self.hint else "")

    def _repr_html_(self) -> str:
        hint = f"<details><summary>Show a hint</summary>{html.escape(self.hint)}</details>" if self.hint else ""
        return html.escape(self.text) + hint


def judge(number: int, kernel: Callable[..., Any]) -> Judgment:
    """Say where a kernel is wrong, and note a puzzle that is solved."""
    for what, inputs in given().items():
        try:
            out = kernel(**{name: np.array(x) for name, x in inputs.items()})
        except Exception as error:
            shapes = ", ".join(f"{name} {np.shape(inputs[name])}" for name in "qkv")
            error.add_note(f"Puzzle {number}, on {what}: {shapes}")
            raise
        try:
            verdict = oracle.check(out, SPEC, inputs, recipe="float32")
        except (TypeError, ValueError) as error:  # no array, or one of another shape: the oracle says which
            text = f"On {what} your kernel returned what cannot be judged:\n  {error}"
            return Judgment(f"Puzzle {number}: not solved. {text}")
        if verdict.status != "pass":
            text = f"On {what}:\n  {_place(np.asarray(out), inputs, verdict)}"
            return Judgment(f"Puzzle {number}: not solved. {text}", _mistake(out, inputs))
    solved.add(number)
    return Judgment(f"Puzzle {number}: solved ✓ On both inputs every row is as near to the truth as float32 allows.")


def _place(out: Any, inputs: dict[str, Any], verdict: oracle.Verdict) -> str:
    """Name the pair and query whose row is wrong most, and say by how much; else what the oracle says."""
    found = verdict.tensors["out"]
    row = next(statistic for statistic in found.statistics if statistic.name == "row")
    if row.holds or row.at is None or not np.isfinite(out).all():
        return f"The oracle says: {found.reasons[0] if found.reasons else verdict.status}"
    text, pair, query = row.at[:3]
    right = oracle.truth(SPEC, inputs).out[row.at[:3]]
    error, size = (float(np.sqrt(np.mean(x**2))) for x in (out[row.at[:3]] - right, right))
    off, allowed, whole = (
        np.format_float_positional(x, precision, fractional=False, trim="-")
        for x, precision in ((error, 3), (error * row.limit / row.value, 1), (size, 3))
    )
    return f"Pair {pair}, query {query} of text {text} is off by {off} (allowed {allowed}; the row's size is {whole})."


def _mistake(out: Any, inputs: dict[str, Any]) -> str:
    """Return what the mistake looks like, or "" where the oracle does not know it."""
    ranking = oracle.diagnose(out, SPEC, inputs, recipe="float32", max_deviations=1)
    if ranking.status != "unique":
        return ""
    best = ranking.findings[0].hypotheses[0]
    return f"It looks like {best.name}: {best.what}"
