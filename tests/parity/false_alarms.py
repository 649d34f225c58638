"""Correct kernels of transformers, timm, torch, jax and MLX, many times over: none may be refused.

    python -m tests.parity.false_alarms --checks 20000
    python -m tests.parity.false_alarms --runs 1000 --preset attention

A check is one tensor of one kernel on one problem: out, dq, dk, dv or a log-sum-exp; a run has all of one problem.
Seeds, layers from 0 to 40, profiles, types and lengths are drawn in turn; prints how many checks there were, how many
were inconclusive, and each refusal; after Ctrl-C or SIGTERM too. The exit status is 1 if a correct kernel was refused.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import signal
import sys
from collections import Counter
from collections.abc import Iterator

import jax
import numpy as np

from refdiff.oracle import Budget, Recipe, Spec, Verdict, budget
from refdiff.oracle.cases.fixed import DIFFERENTIAL_PROFILES, small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import VALUES, draw
from refdiff.oracle.rounding import round_to
from tests.parity.plain_kernels import PLAIN_KERNELS, plain_spec
from tests.parity.real_kernels import DTYPES, KERNELS

LAYERS = 41
STRUCTURES = {
    "hf_diffllama": (Structure(1, 17, 17), Structure(2, 9, 9), Structure(2, 4, 4), Structure(1, 33, 33)),
    "ms_v1": (Structure(1, 13, 19), Structure(2, 9, 14), Structure(1, 1, 17), Structure(1, 24, 37)),
    "timm": (Structure(1, 19, 19), Structure(2, 9, 9), Structure(2, 4, 4), Structure(1, 33, 33)),
    "attention": (Structure(1, 19, 19), Structure(2, 9, 14), Structure(1, 33, 33), Structure(1, 1, 37)),
}
"""By preset; the modules of transformers and timm have as many keys as queries."""
COMPILED = 500
"""After so many problems what jax has compiled is dropped: it takes memory maps, of which a process may have few."""


EVERY_KERNEL = {**KERNELS, **PLAIN_KERNELS}


def problems(first: int, only: str = "") -> Iterator[tuple[int, Spec, str, str, str, bool]]:
    """Yield (seed, spec, profile, type, preset, eager): every combination of the last four for each seed.

    Args:
        only: a preset, for its kernels alone.
    """
    groups = sorted({(preset, eager) for preset, eager, _ in EVERY_KERNEL.values() if only in ("", preset)})
    for seed in itertools.count(first):
        for n, (profile, dtype, (preset, eager)) in enumerate(itertools.product(VALUES, DTYPES, groups)):
            if preset != "attention":
                yield (
                    seed,
                    small_spec(preset).replace(layer=(7 * seed + 11 * n) % LAYERS),
                    profile,
                    dtype,
                    preset,
                    eager,
                )
            elif profile not in DIFFERENTIAL_PROFILES:
                yield seed, plain_spec(seed + n // len(groups)), profile, dtype, preset, eager


Problem = tuple[int, Spec, str, str, str, bool]


def drawn(
    spec: Spec, structure: Structure, profile: str, seed: int, dtype: str, eager: bool
) -> tuple[Budget, np.ndarray]:
    """What a kernel may be off by on a problem, by the recipe that it has, and the gradient of the output."""
    shape = (structure.batch, spec.heads, structure.queries, spec.out_dim)
    dout = round_to(np.random.default_rng([seed, 977]).normal(size=shape), dtype)
    recipe = Recipe.eager(dtype) if eager else Recipe(dtype)
    return budget(spec, draw(spec, structure, profile, seed, dtype), recipe, dout=dout), dout


def judged(problem: Problem) -> list[tuple[str, Verdict]]:
    """What was judged of one problem, and the verdict, by kernel."""
    seed, spec, profile, dtype, preset, eager = problem
    allowed, dout = drawn(spec, STRUCTURES[preset][seed % 4], profile, seed, dtype, eager)
    return [
        (f"{name}, {dtype}, {profile}, seed {seed}, {spec}", allowed.judge(found))
        for name, (of_preset, of_eager, function) in EVERY_KERNEL.items()
        if (of_preset, of_eager) == (preset, eager) and (found := function(spec, allowed.inputs, dout, dtype))
    ]


def checks(first: int, only: str = "", jobs: int = 1) -> Iterator[tuple[str, Verdict]]:
    """Yield (what was judged, the verdict), in the same order for any number of processes."""
    every = problems(first, only)
    if jobs == 1:
        for number, problem in enumerate(every):
            if number % COMPILED == 0:
                jax.clear_caches()
            yield from judged(problem)
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; this process ends the others
    with multiprocessing.get_context("spawn").Pool(jobs, signal.signal, ignore, COMPILED) as pool:
        while True:
            for found in pool.map(judged, itertools.islice(every, 8 * jobs), chunksize=1):
                yield from found


def main(arguments: list[str] | None = None) -> int:
    """Count refusals; 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=int, default=800, metavar="N", help="how many at least (default: 800)")
    parser.add_argument("--runs", type=int, metavar="N", help="how many runs, in place of --checks (default: none)")
    parser.add_argument(
        "--preset", choices=sorted(STRUCTURES), default="", help="its kernels alone (default: all kernels)"
    )
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="of the numbers (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many processes (default: 1)")
    args = parser.parse_args(arguments)
    count: Counter[str] = Counter()
    runs = 0

    def told() -> str:
        return (
            f"{count.total()} checks, in {runs} runs of kernels: {count['fail']} refused, "
            f"{count['inconclusive']} inconclusive"
        )

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for what, verdict in checks(args.first_seed, args.preset, args.jobs):
            runs += 1
            count.update(tensor.status for tensor in verdict.tensors.values())
            if verdict.status == "fail":
                sys.stdout.write(f"{what}\n{verdict}\n")
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{told()}\x1b[K")
            if runs == args.runs or (args.runs is None and count.total() >= args.checks):
                break
    except KeyboardInterrupt:
        pass  # what was judged until then is told
    finally:
        signal.signal(signal.SIGTERM, before)
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    sys.stdout.write(f"{told()}\n")
    return 1 if count["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
