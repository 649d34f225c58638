"""`python -m tests.oracle.mistakes [NAME ...]`: plant every mistake in turn, run the property tests of its layer alone.

A property test is one for which Hypothesis draws the inputs: no golden values, no transformers.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

os.environ |= {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "REFDIFF_HYPOTHESIS": "mutation",
}

from refdiff import layers
from refdiff.oracle.mistakes import CATALOGUE, Mistake
from tests.mutation.planted import Job, prepare, run, tell

ROOT = Path(__file__).parents[3]
PLANTED = [m for m in CATALOGUE if m.layer in layers.__all__]
PROPERTIES = ("-m", "hypothesis and not slow", "-k", "not strict")  # a mistake may be written for NumPy alone


def tests_for(mistake: Mistake) -> tuple[str, ...]:
    """The test file of the layer, or that of all derivatives."""
    file = getattr(layers, mistake.layer).__module__.rpartition(".")[2]
    if mistake.layer.endswith("_vjp"):
        file = "vjp"
    return (f"tests/layers/test_{file}.py",)


def plant(name: str) -> None:
    """Plant the mistake `name`; the modules of the parent are gone, so that it is looked up anew."""
    from refdiff.oracle import mistakes

    mistakes.plant(next(m for m in mistakes.CATALOGUE if m.name == name))


def main(names: list[str]) -> int:
    """Print what noticed each mistake; 1 where one of them was not noticed, or the tests fail without any."""
    chosen = [m for m in PLANTED if not names or m.name in names or m.layer in names]
    prepare()
    without = {tests: Job(lambda: None, tests, 120, PROPERTIES) for tests in map(tests_for, chosen)}
    broken = [o.by for _, o in run(without.values(), ROOT) if o.result != "survived"]
    if broken:
        print(f"without any mistake: {broken}")
        return 1
    jobs = [Job(functools.partial(plant, m.name), tests_for(m), 120, PROPERTIES) for m in chosen]
    return int(not tell(jobs, [f"{m.axis:16} {m.row or '-':4} {m.name:45}" for m in chosen], ROOT))


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.oracle.mistakes", description=__doc__.partition(": ")[2])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a mistake, or a layer for all of its (default: all)")
    given = parser.parse_args().names
    mistaken = {m.layer for m in PLANTED}
    if unknown := set(given) - mistaken - {m.name for m in PLANTED}:
        known = f"a mistake of a layer, or one of the layers {', '.join(sorted(mistaken))}"
        parser.error(f"NAME: got {', '.join(sorted(unknown))}, expected {known}")
    sys.exit(main(given))
