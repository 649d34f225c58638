"""`python -m tests.fuzz --cases 20000 [--seed 0] [--first 0]`: run cases; status 1 if one is bad."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.bases import make
from tests.fuzz.run import run_many, warm_up


def main() -> int:
    """Run the cases that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="which series (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case (default: 0)")
    args = parser.parse_args()
    kinds: Counter[str] = Counter()
    start = time.monotonic()
    signal.signal(signal.SIGTERM, _end)

    def say(ended: str) -> None:
        sys.stdout.write(
            f"{sum(kinds.values())} of {args.cases} cases of seed {args.seed} in {time.monotonic() - start:.0f} s"
            f"{ended}: {kinds['result']} results, {kinds['refused']} refused, {kinds['bad']} bad\n"
        )
        sys.stdout.flush()

    try:
        say(" so far")
        with tempfile.TemporaryDirectory() as work:
            bases = make(Path(work))
            warm_up(bases, Path(work))
            for result in run_many(bases, Path(work), args.seed, args.first, args.cases):
                kinds[result.kind] += 1
                if result.kind == "bad":
                    sys.stdout.write(f"bad: ({result.seed}, {result.number}) {result.what!a}\n  {result.said}\n")
                if result.kind == "bad" or sum(kinds.values()) % 1000 == 0:
                    say(" so far")
    except BaseException as error:
        say(f" until {type(error).__name__}")
        raise
    say("")
    return int(kinds["bad"] > 0)


def _end(number: int, frame: object) -> None:
    raise SystemExit(f"ended by {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
