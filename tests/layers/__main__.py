"""`python -m tests.layers`: each function of the map of equations wrong in turn, and only the tests of its entry.

A wrong function gives 1.001 times its result, whole numbers one larger, the opposite of a mask; so does its derivative.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ |= {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "REFDIFF_HYPOTHESIS": "mutation",
}

from tests.layers.test_equation_map import ENTRIES, Entry
from tests.mutation.planted import Job, prepare, run, tell

ROOT = Path(__file__).parents[2]
ON_NUMPY = ("-m", "", "-k", "not strict and not read-only")


def tests_for(entry: Entry) -> tuple[str, ...]:
    names = (name.partition("::") for name in entry.tests)
    return tuple(f"tests/{file if '/' in file else f'layers/{file}'}.py::{test}" for file, _, test in names)


def plant(name: str, label: str) -> None:
    """Replace the function `name`, and its derivative; the modules of the parent are gone, so it is looked up anew."""
    from refdiff.oracle.mistakes.catalogue import replace

    place, _, function = f"refdiff.{name}".rpartition(".") if "." in name else ("refdiff.layers", "", name)
    module = importlib.import_module(place)
    for right in (getattr(module, n) for n in (function, f"{function}_vjp") if hasattr(module, n)):
        replace(right, wrong(right, label))


def wrong(right: Any, label: str) -> Any:
    # what was measured at initialization may be off by some tenths
    factor = 2 if label == "appendix G" else 1.001

    @functools.wraps(right)
    def mistaken(*args: Any, **options: Any) -> Any:
        if label == "section 2.1":  # of the parts of a Transformer, so its work counts as well
            right(*args, **options)
        return off(right(*args, **options), factor)

    return mistaken


def off(x: Any, factor: float) -> Any:
    """Every number in nested dicts, lists and tuples changed."""
    if isinstance(x, Mapping):
        return {name: off(value, factor) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(off(value, factor) for value in x)
    if isinstance(x, int):
        return x + 1
    if isinstance(x, float):
        return x * factor
    if "bool" in str(getattr(x, "dtype", "")):
        return ~x
    return x * factor if hasattr(x, "dtype") else x


def main() -> int:
    """Print what noticed each; 1 where nothing did, or where the tests fail as they are."""
    prepare()
    as_it_is = run([Job(lambda: None, tests_for(entry), 300, ON_NUMPY) for entry in ENTRIES], ROOT)
    broken = [outcome.by for _, outcome in as_it_is if outcome.result != "survived"]
    if broken:
        print(f"without any mistake: {broken}")
        return 1
    each = [(entry, name) for entry in ENTRIES for name in entry.functions]
    jobs = [Job(functools.partial(plant, name, e.label), tests_for(e), 300, ON_NUMPY) for e, name in each]
    return int(not tell(jobs, [f"{entry.label:14} {name:36}" for entry, name in each], ROOT))


if __name__ == "__main__":
    sys.exit(main())
