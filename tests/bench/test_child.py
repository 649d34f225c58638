"""The process of a side, from inside; from outside: `test_children.py`."""

from __future__ import annotations

import json

import pytest

from refdiff.bench.child import SIDES, answer, make_side
from refdiff.bench.side import Settings

from .fakes import FakeSide


def test_answers_are_lines_of_json() -> None:
    side = FakeSide()
    assert json.loads(answer(side, '{"do": "open"}')) == {"seconds": 7.5}
    assert json.loads(answer(side, '{"do": "prefill", "size": 5, "batch": 2}'))["seconds"] == 5.5
    assert "\n" not in answer(side, '{"do": "peak"}')


@pytest.mark.parametrize(
    ("line", "kind", "part"),
    [
        ('{"do": "nothing"}', "ValueError", "is asked for 'nothing'"),
        ('{"do": "prefill"}', "TypeError", "size"),
        ("{", "JSONDecodeError", "line 1"),
    ],
)
def test_errors_are_answers(line: str, kind: str, part: str) -> None:
    found = json.loads(answer(FakeSide(), line))
    assert found["kind"] == kind
    assert part in found["error"]


def test_an_error_of_many_lines_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("first\n  second")

    side = FakeSide()
    monkeypatch.setattr(side, "peak", fail)
    assert json.loads(answer(side, '{"do": "peak"}')) == {"error": "first second", "kind": "RuntimeError"}


@pytest.mark.parametrize("name", SIDES)
def test_sides_are_made_by_name_without_what_they_measure(name: str) -> None:
    side = make_side(name, Settings(threads=3))
    assert type(side).__name__ == SIDES[name][1]
    assert side.settings.threads == 3
