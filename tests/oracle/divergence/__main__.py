"""`python -m tests.oracle.divergence [SEEDS] [MODE]`: at which point is each mistake of the catalogue first seen?

Each of them, in one of four layers, in SEEDS (5) models and inputs drawn anew, in float32, bfloat16 and float16; MODE
is local (the default: every point is computed anew from the run's own numbers) or free (only the reference is there).
"as said" is the point that the tests expect, "later" one that comes after it, "sooner" one before it, a wrong answer;
"not seen" is a run that passes. Runs without a mistake, of each seed, wiring and type, must all pass.
"""

from __future__ import annotations

import sys
from collections import Counter

from refdiff.oracle.divergence import first_divergence
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.tracing import Trace, trace
from tests.oracle.divergence.runs import inputs, model, run
from tests.oracle.divergence.test_first_divergence import FORWARD, ROUNDING, place_of, wiring_of

TYPES = ("float32", "bfloat16", "float16")
WIRINGS = ("hf", "paper", "v2")


def word(at: str | None, mistake: Mistake, ref: Trace) -> str:
    """Whether the point that was named is the one where the mistake is made."""
    right = place_of(mistake)
    if at is None or at == right:
        return "not seen" if at is None else "as said"
    order = list(ref)
    return "later" if order.index(at) > order.index(right) else "sooner"


def measure(seeds: int, mode: str) -> None:
    """Print the counts of each type, and every answer that is not as said."""
    for dtype in TYPES:
        counts, alarms, clean = Counter[str](), 0, 0
        for seed in range(seeds):
            call = inputs(seed)
            known = {(w, small): model(w, dtype, seed=seed, whisper=small) for w in WIRINGS for small in (False, True)}
            refs = {which: trace(of, call) for which, of in known.items()}
            for which, of in known.items():
                clean += 1
                alarms += first_divergence(run(of, call, dtype), refs[which], mode=mode).path is not None
            for mistake in FORWARD:
                which = (wiring_of(mistake), mistake.axis == "eps")
                at = first_divergence(run(known[which], call, dtype, mistake), refs[which], mode=mode).path
                found = (
                    "is rounding" if mistake.name in ROUNDING and dtype != "float32" else word(at, mistake, refs[which])
                )
                counts[found] += 1
                if found not in ("as said", "is rounding"):
                    print(
                        f"    {dtype}, seed {seed}, {mistake.name}: {found}, at {at} for {place_of(mistake)}",
                        flush=True,
                    )
        print(f"{dtype}, {mode}: {dict(counts.most_common())}; {alarms} of {clean} right runs refused", flush=True)


if __name__ == "__main__":
    seeds, mode = (*sys.argv[1:], *("5", "local")[len(sys.argv) - 1 :])
    measure(int(seeds), mode)
