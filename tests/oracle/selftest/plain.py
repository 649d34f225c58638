"""The selftest of plain attention: grouped queries, other widths of values, windows, softcaps and sinks.

    python -m tests.oracle.selftest.plain --seeds 2

Prints the table; the exit status is 1 if 99 % of the identifiable mutants were not killed, or a correct kernel refused.
"""

from __future__ import annotations

import argparse
import sys
from functools import lru_cache
from typing import Any

from refdiff.oracle import Recipe, Spec
from refdiff.oracle.cases.structure import Structure
from tests.oracle.selftest.one_case import one_case
from tests.oracle.selftest.run import RECIPES
from tests.oracle.selftest.settings import STRUCTURES, Setting, each_deviation_once
from tests.oracle.selftest.table import OURS, Table

SEED = 6000
PROFILES = ("natural", "tiny_values", "extreme", "tiles")
ENOUGH = 0.99
MAIN: tuple[dict[str, Any], ...] = (
    {"query_heads": 12, "key_heads": 3, "window": 11, "softcap": 20.0},
    {"query_heads": 6, "key_heads": 2, "v_head_dim": 24, "rope": "halves", "sinks": True},
    {"query_heads": 6, "key_heads": 1, "rope": "interleaved", "v_head_dim": 8, "scale": 0.2},
)


def settings(seed: int) -> tuple[Setting, ...]:
    """The problems of a seed: one of `MAIN` in turn, then packed and paged ones for the deviations that it lacks."""
    return _settings(seed % len(MAIN), seed // len(MAIN) % 2)


@lru_cache
def _settings(number: int, structure: int) -> tuple[Setting, ...]:
    spec = Spec.preset("attention", head_dim=16, **MAIN[number])
    return each_deviation_once(
        (spec, STRUCTURES[structure], "dense"),
        (spec, Structure(packed=((6, 9), (9, 9), (12, 9))), "packed"),
        (spec, Structure(pages=((7, 17), (1, 6), (12, 12))), "paged"),
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table of so many seeds; 1 where too few mutants are killed, or a correct kernel is refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument("--first-seed", type=int, default=SEED, metavar="N", help=f"of the numbers (default: {SEED})")
    parser.add_argument("--recipes", default=",".join(RECIPES), help=f"some of {', '.join(RECIPES)} (default: all)")
    args = parser.parse_args(arguments)
    table = Table()
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.recipes.split(","):
            for profile in PROFILES:
                table.add(one_case(seed, Recipe.of(name), profile, name, settings(seed)))
    ours = table.total(rule=OURS)
    sys.stdout.write(
        f"{table}\n{ours.killed_identifiable} of {ours.identifiable} identifiable mutants killed, of all "
        f"{ours.mutants}; {ours.refused} of {ours.own} correct runs refused\n"
    )
    return 1 if ours.refused or ours.killed_identifiable < ENOUGH * ours.identifiable else 0


if __name__ == "__main__":
    sys.exit(main())
