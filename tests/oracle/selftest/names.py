"""The names that `diagnose` gives the mutants of the selftest, and outputs without a name: none may be wrong.

    python -m tests.oracle.selftest.names --every 20 --noisy 500 --mistakes 200 --jobs 2

A unique name is right if it is the mutant's, one of its other names, or that of a deviation which on these inputs gives
the same numbers, up to the noise of correct kernels; of a mistake in one place, which has no name, only the last.
An output of `tests.oracle.selftest.outside` may have a number or keys, and no name. Prints how many outputs had their
name, one of several, no name or a wrong one, and each wrong name; the exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, product
from multiprocessing import get_context

import numpy as np

from refdiff import oracle
from refdiff.oracle import diagnose
from tests.oracle.selftest.__main__ import PROFILES
from tests.oracle.selftest.mutants import Mutant
from tests.oracle.selftest.noise import TIMES
from tests.oracle.selftest.one_case import Trial
from tests.oracle.selftest.outside import outputs
from tests.oracle.selftest.page import RECIPES
from tests.oracle.selftest.settings import settings

FIRST_SEED = 8000
WRONG = "wrong"
Case = tuple[int, str, str]
"""A seed, a recipe and a profile."""


def diagnosed(seed: int, recipe: str, profile: str, first: int, every: int) -> Iterator[tuple[Mutant, str, str]]:
    """Yield (mutant, how it was named, the name or names) for every so many of those that fail."""
    number = first
    for setting in settings(seed):
        case = Trial(setting, seed, recipe, profile)
        every_one = list(case.mutants())
        for mutant, base in every_one:
            if mutant.way == "lse" or case.times(mutant.wrong, case.right) <= TIMES:
                continue
            number += 1
            if number % every:
                continue
            wrong = {**{name: base[name] for name in _of(mutant.way, base)}, **case.made(mutant, base)}
            dout = case.dout if mutant.way == "backward" else None
            found = diagnose(wrong, setting.spec, case.budget.inputs, recipe=case.recipe, dout=dout, max_deviations=1)
            fitting = [f for f in found.findings if f.fits]
            aliases = (a for f in fitting for h in f.hypotheses if h.mistake for a in h.mistake.aliases)
            names = {name for f in fitting for name in (f.name, *f.also)} | set(aliases)
            same = {m.name for m, _ in every_one if m is mutant or (m.way == mutant.way and _alike(case, m, mutant))}
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


def of_case(every: int, number: int, case: Case) -> list[tuple[str, str]]:
    """How every so many of a case's mutants are named, and a line for each wrong name."""
    return [
        (how, f"seed {' '.join(map(str, case))} {mutant.way}: {mutant.name} was called {names}" if how == WRONG else "")
        for mutant, how, names in diagnosed(*case, number, every)
    ]


def of_output(given: tuple[str, oracle.Case, np.ndarray]) -> list[tuple[str, str]]:
    """How an output is named that has no name."""
    what, case, out = given
    found = diagnose(out, case.spec, case.inputs, recipe=case.dtype)
    if found.name is None:
        return [(found.status, "")]
    named = all(h.is_name for h in found.findings[0].hypotheses)
    return [(WRONG, f"{what} was called {found.name}")] if named else [("keys", "")]


def main(arguments: list[str] | None = None) -> int:
    """Count the names; 1 where one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="of mutants (default: 1)")
    parser.add_argument("--every", type=int, default=20, metavar="N", help="one of so many mutants (default: 20)")
    parser.add_argument("--noisy", type=int, default=500, metavar="N", help="noisy correct kernels (default: 500)")
    parser.add_argument("--mistakes", type=int, default=200, metavar="N", help="mistakes without names (default: 200)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the numbers (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    args = parser.parse_args(arguments)
    cases = [*product(range(FIRST_SEED + args.seed, FIRST_SEED + args.seed + args.seeds), RECIPES, PROFILES)]
    total: Counter[str] = Counter()
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        each = map if args.jobs == 1 else pool.map
        mutants_named = each(partial(of_case, args.every), range(len(cases)), cases)
        for how, line in chain.from_iterable(
            chain(mutants_named, each(of_output, outputs(args.noisy, args.mistakes, args.seed)))
        ):
            total[how] += 1
            sys.stdout.write(f"{line}\n" if line else "")
            sys.stdout.flush()
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{total.total()} diagnosed ")
    named = ", ".join(f"{n} {how}" for how, n in total.most_common())
    sys.stdout.write(f"{total.total()} outputs diagnosed: {named}; {total[WRONG]} had a wrong name\n")
    return 1 if total[WRONG] else 0


if __name__ == "__main__":
    sys.exit(main())
