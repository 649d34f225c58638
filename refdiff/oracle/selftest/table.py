"""Mutants killed and legal kernels refused, by recipe, profile, direction and rule."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

OURS = "rows"


@dataclass
class Count:
    """mutants, visible: how many there were, and those of which the deviation is at least 5 budgets somewhere. killed,
    killed_visible: how many of them failed. legal, refused: right kernels, and those that failed; undecided: right ones
    that were inconclusive.
    """

    mutants: int = 0
    visible: int = 0
    killed: int = 0
    killed_visible: int = 0
    legal: int = 0
    refused: int = 0
    undecided: int = 0

    def add(self, other: Count) -> None:
        """Add another count to this one."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Table:
    """Counts by (recipe, profile, direction, rule), and the names of visible mutants that survived our rule."""

    counts: dict[tuple[str, str, str, str], Count] = field(default_factory=lambda: defaultdict(Count))
    survivors: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)

    def add(self, other: Table) -> None:
        """Add another table to this one."""
        for key, count in other.counts.items():
            self.counts[key].add(count)
        self.survivors.update(other.survivors)
        self.refusals += other.refusals

    def total(self, **of: str) -> Count:
        """The sum over what `of` does not name: recipe, profile, direction, rule."""
        names = ("recipe", "profile", "direction", "rule")
        whole = Count()
        for key, count in self.counts.items():
            if all(dict(zip(names, key, strict=True))[name] == value for name, value in of.items()):
                whole.add(count)
        return whole

    @property
    def holds(self) -> bool:
        """Whether our rule killed 99 % of the visible mutants of both directions, and refused no legal kernel."""
        ours = self.total(rule=OURS)
        return ours.visible > 0 and ours.killed_visible >= 0.99 * ours.visible and ours.refused == 0

    def __str__(self) -> str:
        numbers = f"{'visible killed':>18}{'all killed':>16}{'legal refused':>15}"
        head = f"{'recipe':9}{'profile':9}{'way':9}{'rule':14}{numbers}"
        lines = [head, *(self._line(key, self.counts[key]) for key in sorted(self.counts, key=_order))]
        lines += ["", *(self._line(("all", "all", "all", rule), self.total(rule=rule)) for rule in self._rules())]
        if self.survivors:
            lines += ["", "visible mutants that passed our rule:"]
            lines += [f"  {n} x {name} ({recipe}, {way})" for (recipe, way, name), n in self.survivors.most_common()]
        return "\n".join([*lines, *(["", "legal kernels that it refused:", *self.refusals] if self.refusals else [])])

    def _rules(self) -> Iterable[str]:
        return dict.fromkeys(rule for *_, rule in sorted(self.counts, key=_order))

    def _line(self, key: tuple[str, str, str, str], c: Count) -> str:
        recipe, profile, way, rule = key
        undecided = f" +{c.undecided}?" if c.undecided else ""
        return (
            f"{recipe:9}{profile:9}{way:9}{rule:14}{_share(c.killed_visible, c.visible):>18}"
            f"{_share(c.killed, c.mutants):>16}{f'{c.refused}/{c.legal}{undecided}':>15}"
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        rows = [
            {"recipe": key[0], "profile": key[1], "direction": key[2], "rule": key[3], **vars(count)}
            for key, count in sorted(self.counts.items(), key=lambda item: _order(item[0]))
        ]
        survivors = [
            {"recipe": recipe, "direction": way, "mutant": name, "times": n}
            for (recipe, way, name), n in self.survivors.most_common()
        ]
        return {"holds": self.holds, "rows": rows, "survivors": survivors, "refusals": self.refusals}


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} % of {whole}" if whole else "-"


def _order(key: tuple[str, str, str, str]) -> tuple[Any, ...]:
    recipe, profile, way, rule = key
    return rule != OURS, rule, way != "forward", recipe, profile
