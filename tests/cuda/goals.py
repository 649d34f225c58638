"""`python -m tests.cuda.goals FILE`: whether what `refdiff bench --json FILE` measured reaches a device's goals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

GOALS = (
    ("decode:128", "of the copy bandwidth", 0.85),
    ("decode:128", "times transformers", 2.0),
    ("prefill:2048", "of the matrix rate", 0.6),
    ("prefill:2048", "times transformers", 1.2),
)
"""Row, what is counted, and how much of it there must be: for weights of 16 bits."""


def reached(row: dict[str, Any], counted: str) -> float | None:
    """How much there is, as a table of the bench shows it; None where it was not measured, or is more than can be."""
    if counted == "times transformers":
        beside = row["against"].get("transformers")
        return None if beside is None else float(beside["ratio"]["median"])
    ceiling = row["ceiling"]
    return None if ceiling is None or "refdiff" in ceiling["doubtful"] else float(ceiling["share"]["refdiff"]["median"])


def judged(report: dict[str, Any]) -> tuple[list[str], bool]:
    """A line for each goal, and whether some were reached and none missed; what was not measured is neither."""
    rows = {row["row"]: row for row in report["rows"] if not row["error"]}
    lines, missed = [], 0
    for name, counted, least in GOALS:
        goal = f"{name}, at least {least:g} {counted}"
        found = reached(rows[name], counted) if name in rows else None
        if found is None:
            lines.append(f"not measured: {goal}")
        elif found >= least:
            lines.append(f"reached: {goal}: {found:.3f}")
        else:
            lines.append(f"missed by {least - found:.3f}: {goal}: {found:.3f}")
            missed += 1
    return lines, missed == 0 and any(line.startswith("reached") for line in lines)


def main(file: str) -> int:
    """Print the lines; 1 where a goal was missed, or nothing was measured at all."""
    try:
        report = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        print("the bench left no numbers")
        return 1
    lines, well = judged(report)
    print(*lines, sep="\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
