"""The selftest's runs as a page in Markdown: by rule, by regime, by real kernel, by mutant."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from tests.oracle.selftest.baseline_rules import BASELINE_RULES
from tests.oracle.selftest.noise import LARGE, TIMES
from tests.oracle.selftest.one_case import OURS, Run

RECIPES = ("float32", "tf32", "bfloat16", "float16")
WAYS = {"forward": "Outputs", "backward": "Gradients", "lse": "Log-sum-exps"}
RULES = (OURS, *sorted(BASELINE_RULES))

_PAGE = """\
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

{sources}
## By rule

{by_rule}
By the errors of the valid orders alone, which real kernels exceed, {plain} identifiable mutants are killed. \
Of the {missed} that are not, {held_back} were inconclusive. Of those that change something by more than 20 times the \
errors of correct kernels, {large} are killed.

## Identifiable mutants killed, by regime

In percent of the identifiable mutants, never rounded up to 100.

{killed}
## Correct kernels refused, by regime

The number of correct kernels of this project (`own`) and of others (`real`), how many of them were inconclusive by our
rule, and how many each rule refused. A run is inconclusive if, in more than 5 % of the rows, the errors of correct
kernels may exceed a quarter of the row. On such inputs this type cannot tell right from wrong, and a pass would say
nothing.

{refused}
"""
_REAL = """\
## Real kernels

The error of the worst row, number or scale of each tensor of a run. The unit is the largest error that correct kernels
have there, by which *identifiable* is defined.

"""
_MUTANTS = """\
## Every mutant

Identifiable mutants killed, of how many, and the number of seeds with identifiable ones; `-` if there is none. Where a
wrong forward pass has no backward pass of its own, its backward mutant has one wrong row.

"""


def is_identifiable(run: Run) -> bool:
    """Whether it is a mutant that the noise of correct kernels does not hide."""
    return run.kind == "mutant" and run.off[0] > TIMES


def page(runs: Sequence[Run], seeds: Sequence[int], options: str = "") -> str:
    """Return the page of runs of these seeds, made by the command with these options."""
    mutants, found = _of_kind(runs, "mutant"), [run for run in runs if is_identifiable(run)]
    missed = [run for run in found if OURS not in run.refused_by]
    consecutive = len(seeds) == seeds[-1] - seeds[0] + 1 > 2
    text = _PAGE.format(
        command=f"python -m tests.oracle.selftest {options}".strip(),
        local=len({run.name for run in mutants if run.axis == "local"}),
        seeds=f"{seeds[0]} to {seeds[-1]}" if consecutive else ", ".join(map(str, seeds)),
        recipes=", ".join(dict.fromkeys(recipe for recipe, _ in _regimes(runs))),
        profiles=", ".join(dict.fromkeys(run.profile for run in runs)),
        sources=_table(
            ("rule", "accepts a tensor where", "source"),
            ((f"`{name}`", rule.words, f"[{rule.source}]({rule.link})") for name, rule in BASELINE_RULES.items()),
        ),
        by_rule=_by_rule(runs),
        plain=share(_refused([run for run in mutants if run.off[1] > TIMES])),
        missed=len(missed),
        held_back=sum(run.status == "inconclusive" for run in missed),
        large=share(_refused([run for run in mutants if run.off[0] > LARGE])),
        killed=_by_way(runs, ("mutants",), _row_of_mutants),
        refused=_by_way(runs, ("own", "real", "inconclusive"), _row_of_correct_kernels),
    )
    real, passed = _of_kind(runs, "real"), [run for run in missed if run.status == "pass"]
    text += _REAL + _real_kernels(real) + "\n" if real else ""
    text += _MUTANTS + _by_name(mutants)
    if passed:
        times = Counter((run.name, run.recipe, run.way) for run in passed).most_common()
        rows = [(n, *key) for key, n in times]
        text += "\n## Identifiable mutants that passed\n\n" + _table(("times", "mutant", "recipe", "way"), rows)
    return text.rstrip()


def share(found: Sequence[bool]) -> str:
    """Such as "99.8 % of 523": never rounded up to all."""
    if not found:
        return "-"
    percent = 100 * sum(found) / len(found)
    return f"{100 if all(found) else min(percent, 99.9):.1f} % of {len(found):,}"


def _refused(runs: Iterable[Run], rule: str = OURS) -> list[bool]:
    return [rule in run.refused_by for run in runs]


def _of_kind(runs: Iterable[Run], *kinds: str) -> list[Run]:
    return [run for run in runs if run.kind in kinds]


def _percent(found: Sequence[bool]) -> str:
    return share(found).partition(" ")[0]


def _of(found: Sequence[bool]) -> str:
    """Such as "3 of 50 (6.0 %)"."""
    if not any(found):
        return f"0 of {len(found):,}" if found else "-"
    return f"{sum(found):,} of {len(found):,} ({_percent(found)} %)"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _by_rule(runs: Sequence[Run]) -> str:
    mutants, own, real = (_of_kind(runs, kind) for kind in ("mutant", "own", "real"))
    inconclusive = sum(run.status == "inconclusive" for run in (*own, *real))
    identifiable = [run for run in mutants if is_identifiable(run)]
    head = ("rule", "identifiable mutants killed", "all mutants killed", "own correct kernels refused")
    return _table(
        (*head, "real kernels refused", "inconclusive"),
        (
            (rule, _of(_refused(identifiable, rule)), share(_refused(mutants, rule)), _of(_refused(own, rule)),
             _of(_refused(real, rule)), f"{inconclusive:,}" if rule == OURS else "-")
            for rule in RULES
        ),
    )  # fmt: skip


def _regimes(runs: Iterable[Run]) -> dict[tuple[str, str], list[Run]]:
    """The runs of each recipe and profile, in this order."""
    found: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        found[run.recipe, run.profile].append(run)
    return dict(sorted(found.items(), key=lambda item: RECIPES.index(item[0][0])))


def _by_way(runs: Sequence[Run], counts: Sequence[str], cells: Callable[[list[Run]], Sequence[object]]) -> str:
    """A table for each: one for all has too many columns to be read."""
    parts = []
    for way, title in WAYS.items():
        rows = [(*key, *cells(of)) for key, of in _regimes(run for run in runs if run.way == way).items()]
        if rows:
            parts.append(f"### {title}\n\n" + _table(("recipe", "profile", *counts, *RULES), rows))
    return "\n".join(parts)


def _row_of_mutants(runs: list[Run]) -> Sequence[object]:
    found = [run for run in runs if is_identifiable(run)]
    return len(found), *(_percent(_refused(found, rule)) for rule in RULES)


def _row_of_correct_kernels(runs: list[Run]) -> Sequence[object]:
    own, real = _of_kind(runs, "own"), _of_kind(runs, "real")
    inconclusive = sum(run.status == "inconclusive" for run in (*own, *real))
    return len(own), len(real), inconclusive, *(sum(_refused((*own, *real), rule)) for rule in RULES)


def _real_kernels(runs: Sequence[Run]) -> str:
    errors: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: {way: [] for way in WAYS})
    for run in runs:
        errors[run.name, run.recipe][run.way] += run.off
    names = list(dict.fromkeys(name for name, _ in errors))
    ordered = sorted(errors.items(), key=lambda item: (names.index(item[0][0]), RECIPES.index(item[0][1])))
    return _table(
        ("kernel", "type", *(f"{way}: worst rows, median and largest" for way in WAYS)),
        ((*key, *(f"{median(x):.2g}, at most {max(x):.2g}" if x else "-" for x in of.values())) for key, of in ordered),
    )


def _by_name(mutants: Sequence[Run]) -> str:
    rows = []
    by_name: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in mutants:
        by_name[run.axis, run.name].append(run)
    for key, runs in sorted(by_name.items()):
        found = [[run for run in runs if run.way == way and is_identifiable(run)] for way in WAYS]
        rows.append((*key, *(
            f"{sum(_refused(of))}/{len(of)}, {len({run.seed for run in of})}" if of else "-" for of in found
        )))  # fmt: skip
    return _table(("axis", "mutant", *WAYS), rows)
