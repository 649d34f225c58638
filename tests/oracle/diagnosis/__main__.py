"""`python -m tests.oracle.diagnosis [PRESET] [DTYPE] [PAIRS] [SEED]`: how many mistakes are named, singles and pairs.

Each is asked for on all dense cases of identify and whisper together, from what a kernel gives in an order that no
budget is made of. Pairs are drawn, by SEED (0), from all that are compatible: of two axes, both possible together, and
another function than any single and than the spec. "one hidden": the answer is one of the two, and its notes say that
the other may be there as well. "no deviation": the output passes as right. PAIRS is how many are drawn (50), or `all`,
which takes some hours.

Measured with hf_diffllama at commit baba13b, a hundred pairs of seed 1: float32 all named, bfloat16 97 and three "one
hidden", each beside exponentials that are rounded to bfloat16, which in that type is no deviation. Singles, at commit
8275ef2: float32 75 of 75, bfloat16 74, that one being "no deviation". A pair took 4.2 and 8.3 s of one core at most.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from refdiff.oracle.cases.fixed import Case, cases, small_spec
from refdiff.oracle.deviations import Deviation, Problem, deviated, deviations, output
from refdiff.oracle.deviations.deviation import equal
from refdiff.oracle.deviations.listed import kind_of, probes
from refdiff.oracle.diagnosis import Ranking, diagnose
from tests.oracle.diagnosis.outputs import kernel

Some = tuple[Deviation, ...]


def shown(preset: str, dtype: str) -> tuple[Case, ...]:
    """All of both profiles but for the whole layer's."""
    spec = small_spec(preset)
    both = [c for profile in ("discriminating", "tiny_values") for c in cases(profile, 5, spec=spec, dtype=dtype)]
    return tuple(c for c in both if kind_of(c.inputs) == "dense")


def compatible(preset: str) -> Iterator[Some]:
    """All pairs of two axes that are a function of their own, on the inputs by which deviations are told apart."""
    spec = small_spec(preset)
    inputs = probes(spec, "dense")

    def outs(some: Some) -> list[np.ndarray | None]:
        problems = [deviated(spec, x, some) for x in inputs]
        return [None if p is None else output(p) for p in problems]

    right = [output(Problem(spec, x)) for x in inputs]
    known = deviations(spec)
    alone = {d.name: outs((d,)) for d in known}
    for pair in combinations(known, 2):
        if pair[0].axis != pair[1].axis:
            both = outs(pair)
            others = (right, *alone.values())
            same = any(all(equal(x, y) for x, y in zip(both, other, strict=True)) for other in others)
            if not same and any(x is not None for x in both):
                yield pair


def asked(preset: str, dtype: str, some: Some, order: int) -> tuple[str, Ranking] | None:
    """Whether `diagnose` is right about a kernel with these deviations, in a word, and its answer; None: no kernel."""
    every = shown(preset, dtype)
    outs = [kernel(case, some, order) for case in every]
    if any(out is None for out in outs):
        return None
    inputs = [case.inputs for case in every]
    found = diagnose(outs, every[0].spec, inputs, recipe=dtype, max_deviations=len(some))
    return word(found, {d.name for d in some}), found


def word(found: Ranking, names: set[str]) -> str:
    """Whether an answer is right."""
    if found.name is None:
        return found.status
    answers = [set(name.split(" + ")) for name in (found.name, *found.candidates[0].also)]
    if names in answers:
        return "named"
    said = {name for note in found.notes for name in note.rpartition(": ")[2].split(", ")}
    return "one hidden" if answers[0] < names <= answers[0] | said else "wrong name"


def measure(preset: str, dtype: str, pairs: int | None, seed: int) -> None:
    """Print the counts, and every answer that is not right."""
    singles: list[Some] = [(d,) for d in deviations(small_spec(preset))]
    doubles = list(compatible(preset))
    chosen = np.random.default_rng(seed).permutation(len(doubles))[:pairs]
    for kind, some in (("singles", singles), ("pairs", [doubles[n] for n in chosen])):
        counts, slowest = Counter[str](), 0.0
        for n, each in enumerate(some):
            start = time.process_time()
            answer = asked(preset, dtype, each, n)
            slowest = max(slowest, time.process_time() - start)
            if answer is None:
                continue
            counts[answer[0]] += 1
            if answer[0] != "named":
                fitting = [f"{c.name} ({c.residual:.2g})" for c in answer[1].candidates if c.fits]
                print(f"    {' + '.join(d.name for d in each)}: {answer[0]}; {', '.join(fitting[:4])}", flush=True)
        of = len(singles) if kind == "singles" else len(doubles)
        print(
            f"{preset} {dtype} {kind}: {counts['named']} of {counts.total()} named (there are {of}), {dict(counts)}, "
            f"slowest {slowest:.1f} s of one core",
            flush=True,
        )


if __name__ == "__main__":
    preset, dtype, pairs, seed = (*sys.argv[1:], *("hf_diffllama", "bfloat16", "50", "0")[len(sys.argv) - 1 :])
    measure(preset, dtype, None if pairs == "all" else int(pairs), int(seed))
