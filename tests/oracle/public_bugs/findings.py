"""What refdiff and ten published rules say of the bugs; `python -m tests.oracle.public_bugs.findings` writes it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refdiff.oracle import Ranking, Recipe, check, diagnose, truth
from refdiff.oracle.rounding.ensemble import evaluate, quantise
from refdiff.oracle.rounding.evaluation_order import MEMBERS
from tests.oracle.public_bugs.table import BUGS, Bug
from tests.oracle.selftest.baseline_rules import BASELINE_RULES, Given, accepts

PAGE = Path(__file__).parents[3] / "notebooks" / "reference" / "guides" / "real_bugs.md"
BEGIN, END = "<!-- bugs: python -m tests.oracle.public_bugs.findings -->\n", "<!-- end -->"
HEAD = "| thread | what was wrong | replayed with | refdiff | rules that refuse it |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Finding:
    """The verdicts of `check` on the kernel with and without the bug, the diagnosis, and which rules refuse the bug."""

    correct: str
    verdict: str
    ranking: Ranking
    refused_by: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names that fit; none if only a number or a place is found."""
        return tuple(f.name for f in self.ranking.findings if f.fits and all(h.is_name for h in f.hypotheses))

    def is_wrong(self, bug: Bug) -> bool:
        """Whether there are names, and none of them is one of the bug."""
        return bool(self.names) and not set(self.names) & set(bug.names)


@functools.cache
def find(number: int) -> Finding:
    """Run a bug of the table."""
    bug = BUGS[number]
    x, dout = bug.inputs()
    right, wrong = (bug.run(x, dout, mistaken=mistaken) for mistaken in (False, True))
    recipe = Recipe.of(bug.recipe, qk=bug.recipe)
    eager = evaluate(bug.spec, quantise(x, recipe), recipe, MEMBERS[0], dout)
    exact = truth(bug.spec, x, want=("out",), dout=dout)
    golden = {"out": exact.out, **{f"d{name}": g for name, g in exact.grads.items()}}
    given = {name: Given(golden[name], eager[name], bug.recipe) for name in wrong}
    return Finding(
        check(right, bug.spec, x, recipe=bug.recipe, dout=dout).status,
        check(wrong, bug.spec, x, recipe=bug.recipe, dout=dout).status,
        diagnose(wrong, bug.spec, x, recipe=bug.recipe, dout=dout),
        tuple(rule for rule in BASELINE_RULES if not accepts(rule, wrong, given)),
    )


def row(number: int) -> str:
    """Return the line of the table for a bug."""
    bug, found = BUGS[number], find(number)
    owner, name, _, thread = bug.thread.split("/")
    (H, K, d), (_, T, S) = bug.heads, bug.tokens
    fitted = "a number" if any(f.fits for f in found.ranking.findings) else "none fits"
    said = " or ".join(f"`{name}`" for name in found.names) or fitted
    passed = [rule for rule in BASELINE_RULES if rule not in found.refused_by]
    cells = (
        f"[{owner}/{name} {thread}]({bug.link})",
        bug.what,
        f"{H} heads, {K} of keys, d {d}, T {T}, S {S}, {bug.recipe}",
        f"{found.verdict}; {said}{' (wrong)' if found.is_wrong(bug) else ''}",
        f"{len(found.refused_by)}: not {', '.join(passed)}" if passed else "all",
    )
    return f"| {' | '.join(cells)} |"


def table(rows: Sequence[str]) -> str:
    """Return the lines of all bugs below what they say together."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    said = [row[-2] for row in cells]
    wrong, several, named, fitted, none = (
        sum(part in s for s in said) for part in ("(wrong)", "` or `", "`", "a number", "none fits")
    )
    refused = {
        rule: sum(rule not in row[-1].partition("not ")[2].split(", ") for row in cells) for rule in BASELINE_RULES
    }
    lines = [
        f"`check` refuses {sum(s.startswith('fail') for s in said)} of {len(rows)} bugs from "
        f"{len({row[0] for row in cells})} threads. `diagnose` gives {named - wrong - several} "
        f"their one name and {several} several names, the right one among them. For {fitted} "
        f"it fits a number, for {none} it has no name, and {wrong} names are wrong.",
        "",
        "| rule | refuses | source |",
        "|---|---|---|",
        *(f"| `{n}` | {refused[n]} of {len(rows)} | [{r.source}]({r.link}) |" for n, r in BASELINE_RULES.items()),
        "",
        HEAD,
        *rows,
    ]
    return "\n".join(lines) + "\n"


def read_table() -> str:
    """Return the table of the page."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    new = table([row(number) for number in range(len(BUGS))])
    PAGE.write_text(before + begin + new + END + rest.partition(END)[2], encoding="utf-8")
