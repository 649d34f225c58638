"""Turns, and what is made of neighbours: numbers worked out by hand."""

from __future__ import annotations

import pytest

from refdiff.bench.pairs import Spread, difference, interleave, ratios


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([4.0, 1.0, 2.0, 8.0]).median == 3.0
    assert Spread.of([5.0]).to_dict() == {"median": 5.0, "low": 5.0, "high": 5.0}
    with pytest.raises(ValueError):
        Spread.of([])


def test_sides_take_turns() -> None:
    order: list[str] = []
    asks = {name: lambda name=name: order.append(name) or {"n": len(order)} for name in "AB"}  # type: ignore[misc]
    answers = interleave(asks, 3, lambda name: order.append(name.lower()), lambda: order.append("|"))
    assert "".join(order) == "aAbB|bBaA|aAbB|"
    assert answers == {"A": [{"n": 2}, {"n": 9}, {"n": 12}], "B": [{"n": 4}, {"n": 7}, {"n": 14}]}


def test_ratios_are_of_neighbours() -> None:
    """A machine that slows down for both leaves the ratio alone, which a ratio of medians would not."""
    theirs, ours = [2.0, 20.0, 3.0], [1.0, 10.0, 1.0]
    assert ratios(theirs, ours) == Spread(2.0, 2.0, 3.0)
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ({"tokens": [[1, 2], [3, 4]]}, {"tokens": [[1, 2], [3, 4]]}, None),
        ({"tokens": [[1, 2], [3, 4]]}, {"tokens": [[1, 2], [3, 5]]}, "token 1 of row 1 is 4 here and 5 there"),
        ({"tokens": [7, 8]}, {"tokens": [7, 9]}, "token 0 of row 1 is 8 here and 9 there"),
        ({"text": "a"}, {"text": "a"}, None),
        ({"text": "a"}, {"text": "b"}, "the text is 'a' here and 'b' there"),
        ({"loss": 2.0}, {"loss": 2.001}, None),
        ({"loss": 2.0}, {"loss": 2.01}, "the loss is 2 here and 2.01 there"),
        ({"loss": float("nan")}, {"loss": 2.0}, "the loss is nan here and 2 there"),
        ({"sample": [100.0, 0.0]}, {"sample": [100.0, 0.05]}, None),
        ({"sample": [100.0, 0.0]}, {"sample": [100.0, 0.2]}, "a result is 0 here and 0.2 there"),
        ({"seconds": 1.0}, {"seconds": 2.0}, None),
    ],
)
def test_difference(ours: dict[str, object], theirs: dict[str, object], found: str | None) -> None:
    assert difference(ours, theirs) == found


@pytest.mark.parametrize("key", ["tokens", "sample"])
def test_answers_of_two_lengths_are_no_match(key: str) -> None:
    with pytest.raises(ValueError):
        difference({key: [1, 2]}, {key: [1]})
