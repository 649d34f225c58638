"""A B B A A B …: sides measured in turn, and what their neighbours' ratios say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Answer = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers, and how far they reach."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Make it of at least one number."""
        return cls(statistics.median(values), min(values), max(values))

    def to_dict(self) -> dict[str, float]:
        """As JSON has it."""
        return asdict(self)


def interleave(
    asks: Mapping[str, Callable[[], Answer]],
    rounds: int,
    before: Callable[[str], None] = lambda name: None,
    last: Callable[[], None] = lambda: None,
) -> dict[str, list[Answer]]:
    """Ask every side once a round, every other round in the reverse order, so that none is always the first.

    `before` hears whose turn it is, and `last` is called at the end of each round. Returns name → its answers.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in asks}
    names = list(asks)
    for _ in range(rounds):
        for name in names:
            before(name)
            answers[name].append(asks[name]())
        names.reverse()
        last()
    return answers


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Divide neighbours, number by number: their ratios' median is free of what befell both."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def difference(ours: Answer, theirs: Answer) -> str | None:
    """Say where two answers show that the sides did not do the same, or None.

    Tokens and texts must be equal; sums of many products, and losses, to a thousandth, being rounded in another order.
    """
    if "tokens" in ours:
        for row, (a, b) in enumerate(zip(_rows(ours["tokens"]), _rows(theirs["tokens"]), strict=True)):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                if x != y:
                    return f"token {i} of row {row} is {x} here and {y} there"
    if "text" in ours and ours["text"] != theirs["text"]:
        return f"the text is {ours['text']!r} here and {theirs['text']!r} there"
    if "loss" in ours and not _close(ours["loss"], theirs["loss"], abs(theirs["loss"])):
        return f"the loss is {ours['loss']:.6g} here and {theirs['loss']:.6g} there"
    if "sample" in ours:
        scale = max(map(abs, theirs["sample"]))
        for a, b in zip(ours["sample"], theirs["sample"], strict=True):
            if not _close(a, b, scale):
                return f"a result is {a:.6g} here and {b:.6g} there"
    return None


def _rows(tokens: list[Any]) -> list[list[int]]:
    return tokens if tokens and isinstance(tokens[0], list) else [[token] for token in tokens]


def _close(a: float, b: float, scale: float) -> bool:
    return abs(a - b) <= 1e-3 * scale  # False where one is no number
