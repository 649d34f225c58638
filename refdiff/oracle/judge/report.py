"""What the judge says of a submitted kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refdiff.messages import printable
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.suite.outcome import Outcome

SHOWN = 3
"""Failed cases that the text has in full; JSON has all."""


@dataclass(frozen=True)
class Report:
    """The verdict on a kernel: true where it is a pass, and only there.

    seed: of all inputs, with which the run can be repeated. cases: by name, in the order of the calls. reasons: what
    does not hold of the run as a whole. unjudged: how many cases have no outcome because the run ended early.
    confined: whether the system kept the kernel from refdiff's files, and not its Python alone.
    """

    kernel: str
    spec: Spec
    recipe: Recipe
    seed: int
    cases: Mapping[str, Outcome]
    reasons: tuple[str, ...] = ()
    gradients: bool = False
    unjudged: int = 0
    confined: bool = True

    @property
    def compared(self) -> int:
        """In how many cases an output was compared."""
        return sum(o.compared for o in self.cases.values())

    @property
    def status(self) -> str:
        """ "pass" or "fail"."""
        return "fail" if self.reasons or self._named("fail") else "pass"

    def __bool__(self) -> bool:
        return self.status == "pass"

    def _named(self, status: str) -> list[str]:
        return [name for name, outcome in self.cases.items() if outcome.status == status]

    def __str__(self) -> str:
        failed = self._named("fail")
        total = len(self.cases) + self.unjudged
        counts = f"{self.compared} of {total} cases compared"
        gradients = "gradients too" if self.gradients else "no gradients, which take dout=None"
        lines = [f"{self.status}: {counts}, {len(failed)} failed; seed {self.seed}", gradients, *self.reasons]
        for name in failed[:SHOWN]:
            lines += [f"{name}: {self.cases[name].text}"]
        if not self.confined:
            lines.append("this system has no Landlock: a kernel that sets out to can read refdiff's files")
        if len(failed) > SHOWN:
            lines.append(f"also failed: {', '.join(failed[SHOWN:])}")
        if declined := [name for name, outcome in self.cases.items() if outcome.declined]:
            lines.append(f"declined: {', '.join(declined)}")
        inconclusive = [name for name, o in self.cases.items() if o.status == "skip" and not o.declined]
        inconclusive += [f"{tensor} of {name}" for name, o in self.cases.items() for tensor in o.inconclusive]
        if inconclusive:
            lines.append(f"inconclusive: {', '.join(inconclusive)}")
        return "\n".join(printable(line) for text in lines for line in text.splitlines())

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "status": self.status,
            "kernel": self.kernel,
            "spec": self.spec.to_dict(),
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "gradients": self.gradients,
            "compared": self.compared,
            "failed": len(self._named("fail")),
            "unjudged": self.unjudged,
            "confined": self.confined,
            "reasons": list(self.reasons),
            "cases": {
                name: {
                    "status": "declined" if o.declined else "inconclusive" if o.status == "skip" else o.status,
                    "inconclusive": list(o.inconclusive),
                    "text": o.text,
                }
                for name, o in self.cases.items()
            },
        }
