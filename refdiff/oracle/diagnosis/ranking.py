"""What `diagnose` answers: the deviations that give your output, how sure that is, and what would make it sure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refdiff.oracle.deviations.deviation import Deviation
from refdiff.oracle.printing import wrap_text

if TYPE_CHECKING:
    from refdiff.oracle.cases.fixed import Case

MAX_NAMES = 6
"""So many names are printed of those that could not be shown."""

NO_DEVIATION, UNIQUE, AMBIGUOUS, NONE_FITS = "no deviation", "unique", "ambiguous", "none fits"


def percent(share: float) -> str:
    """A share in words, rounded down: 100% is all of it."""
    return f"{math.floor(100 * share)}%"


@dataclass(frozen=True)
class Candidate:
    """Some deviations together, and how well they give the output.

    residual: the error of a row in its budget, root mean square over rows; about 1 or less for the right name.
    explains: the share of the squared difference from the truth that is gone. fits: whether the output passes as that
    of a kernel with these deviations. also: names of other deviations that are the same function.
    """

    deviations: tuple[Deviation, ...]
    residual: float
    explains: float
    fits: bool
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The names, joined by a plus."""
        return " + ".join(d.name for d in self.deviations)

    def __str__(self) -> str:
        how = "fits" if self.fits else f"does not fit, explains {percent(self.explains)}"
        lines = [f"{self.name}  ({how}, residual {self.residual:.3g})"]
        for d in self.deviations:
            also = f" Also called {', '.join(d.aliases)}." if d.aliases else ""
            lines.append(f"    {d.axis}: {d.what}{also}{d.link and f' {d.link}'}")
        lines += [f"    the same function: {name}" for name in self.also]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        named = [
            {"name": d.name, "axis": d.axis, "what": d.what, "row": d.row, "link": d.link, "aliases": list(d.aliases)}
            for d in self.deviations
        ]
        return {**vars(self), "deviations": named, "also": list(self.also)}


@dataclass(frozen=True)
class Fit:
    """A number of the spec, fitted to the output: its name, its value, in words, and whether the output then passes.

    explains: the share of the squared difference from the truth that is gone.
    """

    parameter: str
    value: Any
    text: str
    residual: float
    fits: bool
    explains: float = 1.0

    def __str__(self) -> str:
        if self.fits:
            return f"{self.text}  (fits, residual {self.residual:.3g})"
        share = math.floor(1000 * self.explains) / 10
        return f"{self.text}  (does not pass: explains {share:.1f}% of the error, the rest is not rounding)"

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {name: x for name, x in vars(self).items() if name != "residual"}


def _shorten_note(note: str) -> str:
    """A note that lists names, with a few of those that could not be shown: all of them are in `notes`."""
    said, _, listed = note.rpartition(": ")
    names = listed.split(", ")
    if "not tried in pairs" in said:
        return f"{said} (they are in `notes`)"
    if "could not show" not in said or len(names) <= MAX_NAMES:
        return note
    return f"{said}: {', '.join(names[:MAX_NAMES])}, and others (all are in `notes`)"


@dataclass(frozen=True)
class Ranking:
    """The answer. `status` is "no deviation", "unique", "ambiguous" or "none fits".

    candidates: those that fit, with the fewest deviations; where none does, and the output passes with no number
    either, up to three that explain most of the error.
    fits: numbers with which the output passes, where no name fits; or the one that explains nearly all.
    separating: where several fit, a case on which they differ.
    where: the place, where only one is wrong and no name says why; which keys seem not to be seen there;
    where it is NaN, and where nothing was written. The same of gradients, where these are wrong.
    """

    status: str
    candidates: tuple[Candidate, ...] = ()
    fits: tuple[Fit, ...] = ()
    separating: Case | None = None
    notes: tuple[str, ...] = ()
    where: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        """The one name, or None where there is not one."""
        return self.candidates[0].name if self.status == UNIQUE and self.candidates else None

    def __str__(self) -> str:
        number = ", but a number does" if any(fit.fits for fit in self.fits) else ""
        lines = [f"{self.status}: {self.name}" if self.name else self.status + number]
        lines += [f"  {line}" for line in self.where]
        lines += [f"  {line}" for c in self.candidates for line in str(c).splitlines()]
        lines += [f"  {fit}" for fit in self.fits]
        if self.separating is not None:
            case = self.separating
            lines.append(f"  the case {case.name} tells them apart: run your kernel on its inputs, in {case.dtype}")
        return wrap_text("\n".join([*lines, *(f"  {_shorten_note(note)}" for note in self.notes)]))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "status": self.status,
            "name": self.name,
            "candidates": [c.to_dict() for c in self.candidates],
            "fits": [f.to_dict() for f in self.fits],
            "separating": None if self.separating is None else self.separating.name,
            "notes": list(self.notes),
            "where": list(self.where),
        }
