"""The answer of `diagnose`: the deviations or fitted numbers that reproduce an output, and where it is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refdiff.oracle.deviations.deviation import Deviation
from refdiff.oracle.printing import wrap_text

if TYPE_CHECKING:
    from refdiff.oracle.cases.fixed import Case

MAX_NAMES = 6
"""The most names of unobservable deviations that are printed."""

NO_DEVIATION, UNIQUE, AMBIGUOUS, NONE_FITS = "no deviation", "unique", "ambiguous", "none fits"


def percent(share: float) -> str:
    """Format a share in percent, rounded down: only a share of 1 is 100%."""
    return f"{math.floor(100 * share)}%"


@dataclass(frozen=True)
class Candidate:
    """One or two deviations, and how well a kernel with them reproduces the output.

    residual: root mean square over rows of the error in units of the row's budget; about 1 or less if correct.
    explains: the share of the squared difference from the truth that the deviations account for.
    fits: whether the output passes as that of such a kernel, by `Thresholds.wrong_limits`.
    also: names of other deviations that compute the same function.
    """

    deviations: tuple[Deviation, ...]
    residual: float
    explains: float
    fits: bool
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The names of the deviations, joined by " + "."""
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
        """Return the fields as values that JSON can hold."""
        named = [
            {"name": d.name, "axis": d.axis, "what": d.what, "row": d.row, "link": d.link, "aliases": list(d.aliases)}
            for d in self.deviations
        ]
        return {**vars(self), "deviations": named, "also": list(self.also)}


@dataclass(frozen=True)
class Fit:
    """A number of the spec, fitted to the output.

    parameter, value, text: its name, its value, and both in words.
    residual, fits, explains: as in `Candidate`, for a kernel that uses the fitted value.
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
        """Return the fields as values that JSON can hold."""
        return {name: x for name, x in vars(self).items() if name != "residual"}


RIGHT_OUTPUT = "the output is right, "
"""How a note on another tensor than the output begins."""


def _shorten_note(note: str) -> str:
    """Shorten a note that lists names. `Ranking.notes` keeps all of them."""
    said, _, listed = note.rpartition(": ")
    names = listed.split(", ")
    if "not tried in pairs" in said or "could not show whether" in said:
        return f"{said} (they are in `notes`)"
    if "could not show" not in said or len(names) <= MAX_NAMES:
        return note
    return f"{said}: {', '.join(names[:MAX_NAMES])}, and others (all are in `notes`)"


@dataclass(frozen=True)
class Ranking:
    """The answer of `diagnose`.

    status: "no deviation", "unique", "ambiguous" or "none fits".
    candidates: the candidates that fit, with the fewest deviations. If none fits and no number does either, up to
        three that explain most of the error.
    fits: the numbers with which the output passes, if no name fits; or the one that explains nearly all.
    separating: if several candidates fit, a case on which their outputs differ.
    notes: further findings, such as deviations that the inputs cannot show.
    where: the places of the error in the output or the gradients, if it is local and no name explains it: also
        keys or queries that seem to be lost, and where the output is NaN, infinite or unwritten.
    explained: whether no name fits, but the notes reproduce all that is wrong beside a correct output, as by a factor.
    """

    status: str
    candidates: tuple[Candidate, ...] = ()
    fits: tuple[Fit, ...] = ()
    separating: Case | None = None
    notes: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    explained: bool = False

    @property
    def name(self) -> str | None:
        """The name if it is unique, else None."""
        return self.candidates[0].name if self.status == UNIQUE and self.candidates else None

    def __str__(self) -> str:
        other = ", but a note explains it" if self.explained else ""
        other = ", but a number does" if any(fit.fits for fit in self.fits) else other
        lines = [f"{self.status}: {self.name}" if self.name else self.status + other]
        lines += [f"  {line}" for line in self.where]
        lines += [f"  {fit}" for fit in self.fits if fit.fits]  # one number is simpler than two deviations
        lines += [f"  {line}" for c in self.candidates for line in str(c).splitlines()]
        lines += [f"  {fit}" for fit in self.fits if not fit.fits]
        if self.separating is not None:
            case = self.separating
            lines.append(f"  the case {case.name} tells them apart: run your kernel on its inputs, in {case.dtype}")
        return wrap_text("\n".join([*lines, *(f"  {_shorten_note(note)}" for note in self._notes_to_print())]))

    def _notes_to_print(self) -> list[str]:
        """Return the notes without what the candidates say: their meaning, and which gradients are wrong."""
        notes = list(self.notes)
        for d in (d for c in self.candidates for d in c.deviations):
            notes = [note.replace(f" ({d.what.rstrip('.')})", "") for note in notes]
        return [note for note in notes if not (self.candidates and note.startswith(RIGHT_OUTPUT))]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return {
            "status": self.status,
            "name": self.name,
            "candidates": [c.to_dict() for c in self.candidates],
            "fits": [f.to_dict() for f in self.fits],
            "separating": None if self.separating is None else self.separating.name,
            "notes": list(self.notes),
            "where": list(self.where),
            "explained": self.explained,
        }
