"""Measure rows one after the other: the order of the sides, and their processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from refdiff.bench.processes import ChildError, child
from refdiff.bench.report import OURS, evaluate
from refdiff.bench.rows import BenchRow
from refdiff.bench.sides import SIXTEEN_BITS, BenchSettings, Measurement

Turn = Callable[[BenchRow, str], None]


def run(rows: list[BenchRow], settings: BenchSettings, turn: Turn = lambda row, side: None) -> Iterator[dict[str, Any]]:
    """Measure rows and yield the report's entry for each. `turn(row, side)` is called before each measurement,
    and `turn(row, "starting")` before a row's processes start, which takes seconds.

    If a row fails, its entry has the error, and the remaining rows are still measured.

    Raises:
        ImportError: a side's packages are not installed. This is checked before anything is measured.
    """
    for name in (OURS, *settings.against):
        with child(name, BenchRow("load"), settings):  # starts the side, loads nothing
            pass
    for row in rows:
        turn(row, "starting")
        try:
            yield from measure(row, settings, turn)
        except (ChildError, ImportError, OSError) as error:
            yield evaluate(row, {}, error=error)


def measure(row: BenchRow, settings: BenchSettings, turn: Turn = lambda row, side: None) -> list[dict[str, Any]]:
    """Measure one row in new processes; return its entry, and one for its peak memory if kind and system have it.

    Every other round runs the sides in reverse order, so that none is always first. The machine's ceiling is measured
    before each round and after the last.
    """
    kind = row.kind
    names = [OURS, *(name for name in settings.against if name in kind.peers)]
    children: dict[str, Callable[[], Measurement]] = {}

    def ask(name: str) -> Measurement:
        turn(row, name)
        time.sleep(settings.pause)
        if name in children:
            return children[name]()
        with child(name, row, settings) as measure_once:
            return measure_once()

    with ExitStack() as stack:
        long_lived = [] if kind.new_process else names
        for name in [*long_lived, "ceilings"] if kind.ceiling else long_lived:
            children[name] = stack.enter_context(child(name, row, settings))
        for name in names if kind.warm_up else ():
            ask(name)
        answers: dict[str, list[Measurement]] = {name: [] for name in names}
        ceilings: list[Measurement] = []
        for i in range(settings.pairs + 1):
            if kind.ceiling:
                ceilings.append(ask("ceilings"))
            for name in names[:: -1 if i % 2 else 1] if i < settings.pairs else ():
                answers[name].append(ask(name))
    comparable = settings.dtype not in SIXTEEN_BITS  # sides round at different places, so tokens may differ
    entries = [evaluate(row, answers, ceilings, comparable=comparable)]
    # the peak memory of a process never decreases: if it runs all repetitions, the last answer has it
    last = answers if kind.new_process else {name: side_answers[-1:] for name, side_answers in answers.items()}
    if kind.memory and all(answer["bytes"] is not None for side_answers in last.values() for answer in side_answers):
        entries.append(evaluate(row, last, memory=True, comparable=comparable))
    return entries
