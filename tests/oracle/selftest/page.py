"""The selftest's table as a page in Markdown: by rule, by regime, by real kernel, by mutant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from tests.oracle.selftest.baseline_rules import BASELINE_RULES
from tests.oracle.selftest.mutants import WAYS
from tests.oracle.selftest.table import OURS, Count, Table, percent, share

_HEAD = """\
# Selftest of the oracle

    {command}

Every single deviation, and {local} mistakes in one place; seeds {seeds}, on which nothing was tuned; types {recipes};
profiles {profiles}; outputs, gradients and log-sum-exps.

- A *mutant* is a correct kernel with a mistake in it. It is *killed* if it fails.
- A mutant is *identifiable* if its mistake alone, without any rounding, changes some row, number, sum or the scale of a
  tensor by more than five times the largest error that correct kernels have there. These correct kernels round in other
  orders, and at random, than those that the budget is computed from, and no limit of the oracle enters
  (`tests/oracle/selftest/noise.py`). The table of real kernels compares their errors with these.
- A correct kernel that fails is a *false alarm*. A kernel that neither passes nor fails is *inconclusive*.

`rows` is this project's rule. The other rules judge the same arrays as their projects have published them, with every
setting of theirs at its default. `eager` computes in the recipe's storage type and stores every result; `golden` is the
truth in float64, and `ref` the truth rounded to the storage type.
"""


def page(table: Table, seeds: Sequence[int], kernels: str | None = None) -> str:
    """Return the page of a run of these seeds, with these kernels of others."""
    recipes, profiles = ([*dict.fromkeys(key[n] for key in table.in_order())] for n in (0, 1))
    command = f"refdiff check --selftest --seeds {len(seeds)}" + (f" --kernels {kernels}" if kernels else "")
    local = len({name for _, axis, name in table.by_name if axis == "local"})
    head = _HEAD.format(
        command=f"{command} --markdown",
        local=local,
        seeds=_numbers(seeds),
        recipes=", ".join(recipes),
        profiles=", ".join(profiles),
    )
    parts = [head, _sources(table), "## By rule\n", _by_rule(table), _plainly(table.total(rule=OURS))]
    parts += ["## Identifiable mutants killed, by regime\n", _KILLED, *_by_way(table, _killed)]
    parts += ["## Correct kernels refused, by regime\n", _INCONCLUSIVE, *_by_way(table, _refused)]
    if table.errors:
        parts += ["## Real kernels\n", _REAL, _real(table)]
    parts += ["## Every mutant\n", _MUTANTS, _by_name(table), *_survivors(table)]
    return "\n".join(parts).rstrip()


_KILLED = """\
In percent of the identifiable mutants, never rounded up to 100.
"""
_INCONCLUSIVE = """\
The number of correct kernels of this project (`own`) and of others (`real`), how many of them were inconclusive by our
rule, and how many each rule refused. A run is inconclusive if, in more than 5 % of the rows, the errors of correct
kernels may exceed a quarter of the row. On such inputs this type cannot tell right from wrong, and a pass would say
nothing.
"""
_REAL = """\
The error of the worst row, number or scale of each tensor of a run. The unit is the largest error that correct kernels
have there, by which *identifiable* is defined.
"""
_MUTANTS = """\
Identifiable mutants killed, of how many, and the number of seeds with identifiable ones; `-` if there is none. Where a
wrong forward pass has no backward pass of its own, its backward mutant has one wrong row.
"""


def _numbers(seeds: Sequence[int]) -> str:
    stretch = len(seeds) == seeds[-1] - seeds[0] + 1 > 2
    return f"{seeds[0]} to {seeds[-1]}" if stretch else ", ".join(map(str, seeds))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _by_rule(table: Table) -> str:
    rows = []
    for rule in table.rules:
        c = table.total(rule=rule)
        inconclusive = f"{c.inconclusive:,}" if rule == OURS else "-"
        killed = _of(c.killed_identifiable, c.identifiable), share(c.killed, c.mutants)
        rows.append((rule, *killed, _of(c.own_refused, c.own), _of(c.real_refused, c.real), inconclusive))
    head = ("rule", "identifiable mutants killed", "all mutants killed", "own correct kernels refused")
    return _table((*head, "real kernels refused", "inconclusive"), rows)


def _plainly(c: Count) -> str:
    return (
        f"By the errors of the valid orders alone, which real kernels exceed, {share(c.killed_plain, c.plain)} "
        f"identifiable mutants are killed. Of the {c.identifiable - c.killed_identifiable} that are not, "
        f"{c.held_back} were inconclusive. Of those that change something by more than 20 times the errors of correct "
        f"kernels, {share(c.killed_large, c.large)} are killed.\n"
    )


def _of(part: int, whole: int) -> str:
    if not whole:
        return "-"
    return f"{part:,} of {whole:,} ({percent(part, whole)} %)" if part else f"0 of {whole:,}"


def _sources(table: Table) -> str:
    rows = [
        (f"`{name}`", rule.words, f"[{rule.source}]({rule.link})")
        for name, rule in BASELINE_RULES.items()
        if name in table.rules
    ]
    return _table(("rule", "accepts a tensor where", "source"), rows)


def _by_way(table: Table, regimes: Callable[[Table, str], str]) -> list[str]:
    """A table for outputs, one for gradients and one for log-sum-exps: one for all has too many columns to be read."""
    found = {key[2] for key in table.counts}
    return [part for way in WAYS if way in found for part in (f"### {_WAYS[way]}\n", regimes(table, way))]


_WAYS = {"forward": "Outputs", "backward": "Gradients", "lse": "Log-sum-exps"}


def _regimes(table: Table, way: str) -> list[tuple[tuple[str, str], list[Count]]]:
    """Recipe and profile, and the counts of each rule."""
    keys = [key[:2] for key in table.in_order() if key[2:] == (way, OURS)]
    return [(key, [table.counts[(*key, way, rule)] for rule in table.rules]) for key in keys]


def _killed(table: Table, way: str) -> str:
    rows = [
        (*key, ours.identifiable, *(percent(c.killed_identifiable, c.identifiable) for c in (ours, *others)))
        for key, (ours, *others) in _regimes(table, way)
    ]
    return _table(("recipe", "profile", "mutants", *table.rules), rows)


def _refused(table: Table, way: str) -> str:
    rows = [
        (*key, ours.own, ours.real, ours.inconclusive, *(c.refused for c in (ours, *others)))
        for key, (ours, *others) in _regimes(table, way)
    ]
    return _table(("recipe", "profile", "own", "real", "inconclusive", *table.rules), rows)


def _real(table: Table) -> str:
    rows = []
    for name in dict.fromkeys(key[3] for key in table.errors):
        for recipe in dict.fromkeys(key[0] for key in table.errors if key[3] == name):
            of: dict[str, list[float]] = {way: [] for way in WAYS}
            for key, errors in table.errors.items():
                if key[0] == recipe and key[3] == name:
                    of[key[2]] += errors
            rows.append((name, recipe, *(f"{median(x):.2g}, at most {max(x):.2g}" if x else "-" for x in of.values())))
    return _table(("kernel", "type", *(f"{way}: worst rows, median and largest" for way in WAYS)), rows)


def _by_name(table: Table) -> str:
    rows = []
    for axis, name in dict.fromkeys(
        (axis, name) for _, axis, name in sorted(table.by_name, key=lambda k: (k[1], k[2]))
    ):
        cells = []
        for way in WAYS:
            c, seeds = table.by_name.get((way, axis, name), Count()), table.seeds.get((way, axis, name), set())
            cells.append(f"{c.killed_identifiable}/{c.identifiable}, {len(seeds)}" if c.identifiable else "-")
        rows.append((axis, name, *cells))
    return _table(("axis", "mutant", *WAYS), rows)


def _survivors(table: Table) -> list[str]:
    if not table.survivors:
        return []
    rows = [(n, name, recipe, way) for (recipe, way, name), n in table.survivors.most_common()]
    return ["## Identifiable mutants that passed\n", _table(("times", "mutant", "recipe", "way"), rows)]
