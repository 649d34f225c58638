"""The answer of `diagnose`: the hypotheses that reproduce an output, and where it is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refdiff.oracle.printing import wrap_text

if TYPE_CHECKING:
    from refdiff.oracle.diagnosis.hypotheses import Hypothesis

NO_DEVIATION, UNIQUE, AMBIGUOUS, NONE_FITS = "no deviation", "unique", "ambiguous", "none fits"
RIGHT_OUTPUT = "the output is right, "
"""How a note on another tensor than the output begins."""


def percent(share: float) -> str:
    """Format a share in percent, rounded down: only a share of 1 is 100%."""
    return f"{math.floor(100 * share)}%"


@dataclass(frozen=True)
class Finding:
    """One or two hypotheses with their numbers, and how well a kernel with them reproduces the tensors.

    hypotheses, values: each hypothesis with its name and meaning, and its number; None for one without a number.
    residual: root mean square over rows of the error in units of the row's budget; about 1 or less if correct.
    explains: the share of the squared difference from the truth that the hypotheses account for.
    fits: whether the tensors pass as those of such a kernel, by `Thresholds.wrong_limits`, and the truth does not.
    also: names of other findings that compute the same function.
    """

    hypotheses: tuple[Hypothesis, ...]
    values: tuple[Any, ...]
    residual: float
    explains: float
    fits: bool
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The names of the hypotheses, with their numbers, joined by " + "."""
        return " + ".join(
            h.name if value is None else f"{h.name} = {_format(value)}"
            for h, value in zip(self.hypotheses, self.values, strict=True)
        )

    @property
    def what(self) -> str:
        """What the kernel computes, in a sentence for each hypothesis."""
        return " ".join(self._sentences())

    def _sentences(self) -> list[str]:
        return [
            h.what.format(value) if value is not None else h.what
            for h, value in zip(self.hypotheses, self.values, strict=True)
        ]

    def __str__(self) -> str:
        how = "fits" if self.fits else f"does not fit, explains {percent(self.explains)}"
        lines = [f"{self.name}  ({how}, residual {self.residual:.3g})"]
        for h, what in zip(self.hypotheses, self._sentences(), strict=True):
            aliases, link = (h.mistake.aliases, h.mistake.link) if h.mistake else ((), "")
            also = f" Also called {', '.join(aliases)}." if aliases else ""
            lines.append(f"    {h.axis}: {what}{also}{link and f' {link}'}")
        lines += [f"    the same function: {name}" for name in self.also]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        named = []
        for h, value, what in zip(self.hypotheses, self.values, self._sentences(), strict=True):
            row, link, aliases = (h.mistake.row, h.mistake.link, h.mistake.aliases) if h.mistake else ("", "", ())
            number = {} if value is None else {"value": value}
            named.append(
                {
                    "name": h.name,
                    **number,
                    "axis": h.axis,
                    "what": what,
                    "row": row,
                    "link": link,
                    "aliases": list(aliases),
                }
            )
        residual = self.residual if math.isfinite(self.residual) else str(self.residual)
        return {
            "name": self.name, "hypotheses": named, "residual": residual, "explains": self.explains, "fits": self.fits,
            "also": list(self.also),
        }  # fmt: skip


def _format(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value - 1) > 1e-3
        else f"{value:.7g}"
        if isinstance(value, float)
        else str(value)
    )


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
        lines = [f"{self.status}: {self.name}" if self.name else self.status]
        lines += [f"  {line}" for line in self.where]
        lines += [f"  {line}" for finding in self.findings for line in str(finding).splitlines()]
        notes = [note for note in self.notes if not (self.name and note.startswith(RIGHT_OUTPUT))]
        return wrap_text("\n".join([*lines, *(f"  {note}" for note in notes)]))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return {
            "status": self.status,
            "name": self.name,
            "findings": [finding.to_dict() for finding in self.findings],
            "notes": list(self.notes),
            "where": list(self.where),
        }
