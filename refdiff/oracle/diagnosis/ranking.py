"""The answer of `diagnose`: the hypotheses that reproduce an output, and where it is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refdiff.oracle.diagnosis.hypotheses import Edits, Hypothesis
from refdiff.oracle.printing import wrap_text

NO_DEVIATION, UNIQUE, AMBIGUOUS, NONE_FITS = "no deviation", "unique", "ambiguous", "none fits"
RIGHT_OUTPUT = "the output is right, "
"""How a note on another tensor than the output begins."""


def percent(share: float) -> str:
    """Format a share in percent, rounded down: only a share of 1 is 100%."""
    return f"{math.floor(100 * share)}%"


@dataclass(frozen=True)
class Finding:
    """One or two hypotheses with their numbers, and how well a kernel with them reproduces the tensors.

    edits: each hypothesis with the coordinate of its number.
    residual: root mean square over rows of the error in units of the row's budget, of the worst tensor; about 1 or less
        if correct.
    explains: the share of the squared difference from the truth that they account for, on average over wrong tensors.
    each: the residual of each tensor; ∞ where NaN are in other places.
    fits: whether the tensors pass as those of such a kernel, by `Thresholds.wrong_limits`, and the truth does not.
    also: names of other findings that compute the same function.
    """

    edits: Edits
    residual: float = math.inf
    explains: float = 0.0
    each: Mapping[str, float] = field(default_factory=dict)
    fits: bool = False
    also: tuple[str, ...] = ()

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """The hypotheses, each with its name and meaning."""
        return tuple(h for h, _ in self.edits)

    @property
    def values(self) -> tuple[Any, ...]:
        """The number of each hypothesis; None for one without a number."""
        return tuple(h.value(x) if h.has_number else None for h, x in self.edits)

    @property
    def cost(self) -> float:
        """How much is fitted: 1 for each number, and a half for a whole one or a set of lost tokens."""
        return sum(0.0 if h.is_name else 0.5 if h.is_whole or not h.has_number else 1.0 for h in self.hypotheses)

    @property
    def at_edge(self) -> bool:
        """Whether a number is at the end of its range: the range may be too short, or the number without a limit."""
        edges = ((h.grid, value) for h, value in self.edits if h.grid is not None and not h.is_whole)
        return any(not grid[0] + 1e-3 < value < grid[-1] - 1e-3 for grid, value in edges)

    @property
    def name(self) -> str:
        """The names of the hypotheses, with their numbers, joined by " + "."""
        each = zip(self.hypotheses, self.values, strict=True)
        return " + ".join(h.name if value is None else f"{h.name} = {_format(value)}" for h, value in each)

    @property
    def what(self) -> str:
        """What the kernel computes, in a sentence for each hypothesis."""
        return " ".join(h.describe(value) for h, value in zip(self.hypotheses, self.values, strict=True))

    def __str__(self) -> str:
        how = "fits" if self.fits else f"does not fit, explains {percent(self.explains)}"
        lines = [f"{self.name}  ({how}, residual {self.residual:.3g})"]
        for h, value in zip(self.hypotheses, self.values, strict=True):
            aliases, link = (h.mistake.aliases, h.mistake.link) if h.mistake else ((), "")
            also = f" Also called {', '.join(aliases)}." if aliases else ""
            lines.append(f"    {h.axis}: {h.describe(value)}{also}{link and f' {link}'}")
        return "\n".join([*lines, *(f"    the same function: {name}" for name in self.also)])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        named = [
            {"name": h.name, "value": value, "axis": h.axis, "what": h.describe(value)}
            | ({"row": m.row, "link": m.link, "aliases": list(m.aliases)} if (m := h.mistake) else {})
            for h, value in zip(self.hypotheses, self.values, strict=True)
        ]
        residual = self.residual if math.isfinite(self.residual) else str(self.residual)
        found = {"name": self.name, "hypotheses": named, "residual": residual, "explains": self.explains}
        return {**found, "fits": self.fits, "also": list(self.also)}


def _format(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value - 1) > 1e-3 else f"{value:.7g}"


@dataclass(frozen=True)
class Ranking:
    """The answer of `diagnose`.

    status: "no deviation", "unique", "ambiguous" or "none fits".
    findings: those that fit, with the fewest hypotheses and numbers. If none fits, up to three that explain most.
    notes: further remarks, such as which other tensors are wrong.
    where: the places of the error, if it is local and no name explains it: also where the output is NaN, infinite or
        unwritten.
    """

    status: str
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    where: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        """The name if it is unique, else None."""
        return self.findings[0].name if self.status == UNIQUE and self.findings else None

    def __str__(self) -> str:
        notes = [note for note in self.notes if not (self.name and note.startswith(RIGHT_OUTPUT))]
        lines = [*self.where, *(line for finding in self.findings for line in str(finding).splitlines()), *notes]
        head = f"{self.status}: {self.name}" if self.name else self.status
        return wrap_text("\n".join([head, *(f"  {line}" for line in lines)]))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        found = {"status": self.status, "name": self.name, "findings": [f.to_dict() for f in self.findings]}
        return {**found, "notes": list(self.notes), "where": list(self.where)}
