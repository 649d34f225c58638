"""The results of key retrieval, as means over seeds with 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

WIRINGS = ("hf", "v2", "none")
DEPTHS = (0, 25, 50, 75, 100)
"""Where in the haystack a needle stands, in percent: 0 is the beginning."""

MEASURES = ("accuracy", "answer", "noise", "net answer", "net noise")

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t of a 95 % confidence interval for 1, 2, … degrees of freedom; from 11 on the last is used, too wide."""

Runs = Sequence[dict[str, Any]]


def mean_and_interval(numbers: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the half width of its 95 % confidence interval (not a number for one number alone)."""
    n = len(numbers)
    mean = math.fsum(numbers) / n
    if n < 2:
        return mean, math.nan
    variance = math.fsum((x - mean) ** 2 for x in numbers) / (n - 1)
    return mean, T_95[min(n - 1, len(T_95)) - 1] * math.sqrt(variance / n)


def differences(runs: Runs, length: int, measure: str, wiring: str = "hf") -> list[float]:
    """Differential − plain, for every seed that has both."""
    by_seed = [
        {run["seed"]: run["measured"][str(length)][measure] for run in runs if run["wiring"] == kind}
        for kind in (wiring, "none")
    ]
    return [by_seed[0][seed] - by_seed[1][seed] for seed in sorted(by_seed[0].keys() & by_seed[1].keys())]


def table(runs: Runs) -> str:
    """Return a line for each length and variant, and for its difference from plain by seed: percent, mean ± 95 %."""
    lines = [f"{'tokens':>6} {'wiring':7} " + " ".join(f"{name:>12}" for name in MEASURES)]
    for length in sorted({int(key) for run in runs for key in run["measured"]}):
        for wiring in WIRINGS:
            found = [run["measured"][str(length)] for run in runs if run["wiring"] == wiring]
            if found:
                lines.append(_line(length, wiring, ([f[name] for f in found] for name in MEASURES)))
        for wiring in WIRINGS[:-1]:
            if differences(runs, length, "accuracy", wiring):
                by_measure = (differences(runs, length, name, wiring) for name in MEASURES)
                lines.append(_line(length, f"{wiring}−none", by_measure))
    return "\n".join(lines)


def depth_table(runs: Runs, length: int) -> str:
    """Return table 3 of Ye et al. 2024 for sequences of one length: shares by depth of the needle, means over seeds."""
    lines = [f"{length:6} tokens:  " + " ".join(f"{f'{depth} %':>12}" for depth in DEPTHS)]
    for measure in ("accuracy", "answer", "noise"):
        for wiring in WIRINGS:
            found = [run["measured"][str(length)]["depths"][measure] for run in runs if run["wiring"] == wiring]
            if found:
                cells = ([x for x in column if x is not None] for column in zip(*found, strict=True))
                lines.append(f"{wiring:6} {measure:9}" + " ".join(_cell(column) for column in cells))
    return "\n".join(lines)


def _line(length: int, name: str, columns: Iterable[Sequence[float]]) -> str:
    return f"{length:6} {name:7} " + " ".join(_cell(column) for column in columns)


def _cell(numbers: Sequence[float]) -> str:
    """Format mean and half width in percent, twelve characters wide; unknown ones are a dash."""
    if not numbers:
        return f"{'–':>12}"
    mean, half = mean_and_interval(numbers)
    return f"{100 * mean:5.1f} ± " + (f"{'–':>4}" if math.isnan(half) else f"{100 * half:4.1f}")
