"""The selftest: mutants that must fail, correct kernels that must pass, and other rules on the same runs.

    python -m tests.oracle.selftest --seeds 20 --jobs 2 --real > tests/oracle/selftest/results.md

Writes the page; the exit status is 1 if too few identifiable mutants were killed, or a correct kernel refused.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context

from tests.oracle.selftest.one_case import OURS, Run, runs_of_case
from tests.oracle.selftest.page import RECIPES, is_identifiable, page

PROFILES = ("natural", "cancellation", "tiny_values", "extreme")
PROFILES_OF_PLAIN = ("natural", "tiny_values", "extreme", "tiles")
FIRST_SEED, FIRST_SEED_OF_PLAIN = 4000, 6000
"""Nothing was tuned on seeds from these on."""


def least_killed(seeds: int, plain: bool) -> float:
    """Return the share of identifiable mutants that must be killed.

    Of seeds 4000 to 4019 the lowest has 98.7 %, and all together have 99.4 %; of plain attention six have 99.6 %.
    """
    return 0.99 if plain else 0.992 if seeds >= 20 else 0.98


def holds(runs: list[Run], least: float) -> bool:
    """Whether enough of the identifiable mutants are killed, and no correct kernel is refused."""
    killed = [OURS in run.refused_by for run in runs if is_identifiable(run)]
    refused = any(OURS in run.refused_by for run in runs if run.kind != "mutant")
    return bool(killed) and sum(killed) >= least * len(killed) and not refused


def main(arguments: list[str] | None = None) -> int:
    """Judge all cases and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", action="store_true", help="of plain attention: sinks, softcaps, other value widths")
    parser.add_argument("--real", action="store_true", help="kernels of torch, transformers, timm, JAX and MLX too")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument("--first-seed", type=int, metavar="N", help="of the numbers (default: 4000; plain: 6000)")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="comma-separated (default: %(default)s)")
    parser.add_argument("--profiles", help="comma-separated (default: four)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    args = parser.parse_args(arguments)
    if args.plain and args.real:
        parser.error("--plain, --real: got both, expected one of them")
    first = args.first_seed if args.first_seed is not None else FIRST_SEED_OF_PLAIN if args.plain else FIRST_SEED
    seeds = range(first, first + args.seeds)
    profiles = args.profiles.split(",") if args.profiles else PROFILES_OF_PLAIN if args.plain else PROFILES
    cases = [*product(seeds, args.recipes.split(","), profiles)]
    runs: list[Run] = []
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        work = partial(runs_of_case, plain=args.plain, real=args.real)
        for number, found in enumerate((map if args.jobs == 1 else pool.map)(work, cases), 1):
            runs += found
            sys.stderr.write(f"\rcase {number} of {len(cases)} ")
    for run in runs:
        if run.verdict:
            sys.stderr.write(f"\n{run.recipe} {run.profile} {run.way} {run.name}, seed {run.seed}\n{run.verdict}\n")
    options = [*(["--plain"] if args.plain else []), f"--seeds {args.seeds}", *(["--real"] if args.real else [])]
    sys.stdout.write(page(runs, seeds, " ".join(options)) + "\n")
    return 0 if holds(runs, least_killed(args.seeds, args.plain)) else 1


if __name__ == "__main__":
    sys.exit(main())
