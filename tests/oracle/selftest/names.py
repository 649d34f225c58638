"""The names that `diagnose` gives the mutants of the selftest: none may be the wrong one, said to be the only one.

    python -m tests.oracle.selftest.names --every 20 --jobs 2

A unique name is right if it is the mutant's, one of its other names, or that of a deviation which on these inputs gives
the same numbers, up to the noise of correct kernels; of a mistake in one place, which has no name, only the last.
Prints how many mutants had their name, one of several, no name or a wrong one, and each wrong name; the exit status is
1 if there was one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np

from refdiff.oracle import Recipe, diagnose
from tests.oracle.selftest.mutants import Mutant, mutants
from tests.oracle.selftest.noise import TIMES
from tests.oracle.selftest.one_case import Trial
from tests.oracle.selftest.run import PROFILES, RECIPES
from tests.oracle.selftest.settings import settings

SEED = 8000
WRONG = "wrong"
Case = tuple[int, str, str]
"""A seed, a recipe and a profile."""


def diagnosed(seed: int, recipe: str, profile: str, first: int, every: int) -> Iterator[tuple[Mutant, str, str]]:
    """Yield (mutant, how it was named, the name or names) for every so many of those that fail."""
    number = first
    for setting in settings(seed):
        case = Trial(setting, seed, Recipe.of(recipe), profile)
        rng = np.random.default_rng([seed, 31])
        every_one = list(mutants(setting, case.budget.inputs, case.right, case.dout, rng))
        for n, mutant in enumerate(every_one):
            if mutant.way == "lse" or case.times(mutant.wrong, case.right) <= TIMES:
                continue
            number += 1
            if number % every:
                continue
            base = case.runs[n % len(case.runs)]
            wrong = {**{name: base[name] for name in _of(mutant.way, base)}, **case.made(mutant, base)}
            dout = case.dout if mutant.way == "backward" else None
            found = diagnose(wrong, setting.spec, case.budget.inputs, recipe=case.recipe, dout=dout, max_deviations=1)
            fitting = [f for f in found.findings if f.fits]
            aliases = (a for f in fitting for h in f.hypotheses if h.mistake for a in h.mistake.aliases)
            names = {name for f in fitting for name in (f.name, *f.also)} | set(aliases)
            same = {m.name for m in every_one if m is mutant or (m.way == mutant.way and _alike(case, m, mutant))}
            how = found.status
            if found.name is not None:
                how = "unique" if names & same else WRONG
                if mutant.axis == "local" and not all(h.is_name for h in found.findings[0].hypotheses):
                    how = "keys"  # of a place, such as key 0 that the last row does not see
            yield mutant, how, ", ".join(sorted(c.name for c in fitting))


def _of(way: str, base: dict[str, np.ndarray]) -> list[str]:
    """What a kernel with gradients gives, or the output alone: of these a mutant changes some."""
    return ["out", *(name for name in base if name.startswith("d"))] if way == "backward" else ["out"]


def _alike(case: Trial, one: Mutant, other: Mutant) -> bool:
    names = one.wrong.keys() | other.wrong.keys()
    a, b = ({name: m.wrong.get(name, case.right[name]) for name in names} for m in (one, other))
    return case.times(a, b) <= TIMES


def _counted(every: int, number: int, case: Case) -> tuple[Counter[str], list[str]]:
    """How the mutants of a case were named, and a line for each wrong name."""
    count: Counter[str] = Counter()
    wrong = []
    for mutant, how, names in diagnosed(*case, number, every):
        count[how] += 1
        if how == WRONG:
            wrong.append(f"seed {' '.join(map(str, case))} {mutant.way}: {mutant.name} was called {names}\n")
    return count, wrong


def main(arguments: list[str] | None = None) -> int:
    """Count the names; 1 where one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument("--first-seed", type=int, default=SEED, metavar="N", help=f"of the numbers (default: {SEED})")
    parser.add_argument("--every", type=int, default=20, metavar="N", help="one of so many mutants (default: 20)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    args = parser.parse_args(arguments)
    total: Counter[str] = Counter()
    cases = [(s + args.first_seed, r, p) for s in range(args.seeds) for r in RECIPES for p in PROFILES]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        found = (map if args.jobs == 1 else pool.map)(partial(_counted, args.every), range(len(cases)), cases)
        for number, (count, wrong) in enumerate(found, 1):
            total.update(count)
            sys.stdout.writelines(wrong)
            sys.stdout.flush()
            if sys.stderr.isatty():
                sys.stderr.write(f"\rcase {number} of {len(cases)}, {total.total()} mutants diagnosed ")
    named = ", ".join(f"{n} {how}" for how, n in total.most_common())
    sys.stdout.write(f"{total.total()} mutants diagnosed: {named}; {total[WRONG]} had a wrong name\n")
    return 1 if total[WRONG] else 0


if __name__ == "__main__":
    sys.exit(main())
