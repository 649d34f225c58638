"""Measure rows one after the other: whose turn it is, and in which processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from refdiff.bench.processes import ChildError, child
from refdiff.bench.report import OURS, evaluate
from refdiff.bench.rows import Row
from refdiff.bench.side import SIXTEEN_BITS, Answer, Settings

Turn = Callable[[Row, str], None]


def run(rows: list[Row], settings: Settings, turn: Turn = lambda row, side: None) -> Iterator[dict[str, Any]]:
    """Measure rows, and give what a report has of each; `turn` hears whose turn it is.

    A row that fails says why, and the next one is measured all the same.

    Raises:
        ImportError: a side's packages are not installed, which is said before an hour of measuring.
    """
    for name in (OURS, *settings.against):
        with child(name, Row("load"), settings):  # which loads nothing yet
            pass
    for row in rows:
        try:
            yield from measure(row, settings, turn)
        except (ChildError, ImportError, OSError) as error:
            yield evaluate(row, {}, error=error)


def measure(row: Row, settings: Settings, turn: Turn = lambda row, side: None) -> list[dict[str, Any]]:
    """Measure one row, in processes of its own; one that has its memory told gives that as a second one, where known.

    Sides answer in reverse order every other round, so that none is always the first; the machine's ceiling is measured
    before each round and after the last.
    """
    kind = row.kind
    names = [OURS, *(name for name in settings.against if name in kind.peers)]
    children: dict[str, Callable[[], Answer]] = {}

    def ask(name: str) -> Answer:
        turn(row, name)
        time.sleep(settings.rest)
        if name in children:
            return children[name]()
        with child(name, row, settings) as measure_once:
            return measure_once()

    with ExitStack() as stack:
        kept = [] if kind.new_process else names
        for name in [*kept, "ceilings"] if kind.ceiling else kept:
            children[name] = stack.enter_context(child(name, row, settings))
        for name in names if kind.warm_up else ():
            ask(name)
        answers: dict[str, list[Answer]] = {name: [] for name in names}
        ceilings: list[Answer] = []
        for i in range(settings.pairs + 1):
            if kind.ceiling:
                ceilings.append(ask("ceilings"))
            for name in names[:: -1 if i % 2 else 1] if i < settings.pairs else ():
                answers[name].append(ask(name))
    comparable = settings.dtype not in SIXTEEN_BITS  # sides round in other places, so that their tokens may differ
    found = [evaluate(row, answers, ceilings, comparable=comparable)]
    # of a process that stays, the most that it held until the last repetition
    last = answers if kind.new_process else {name: given[-1:] for name, given in answers.items()}
    if kind.memory and all(answer["bytes"] is not None for given in last.values() for answer in given):
        found.append(evaluate(row, last, memory=True, comparable=comparable))
    return found
