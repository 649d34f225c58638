"""What answers come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refdiff.bench.report import describe_model, difference, evaluate, failed, report
from refdiff.bench.rows import BenchRow
from refdiff.bench.sides import BenchSettings


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ({"tokens": [[1, 2], [3, 4]]}, {"tokens": [[1, 2], [3, 5]]}, "tokens (1, 1): 4 here and 5 there"),
        ({"tokens": [[1], [2]]}, {"tokens": [[1]]}, "tokens: (2, 1) here and (1, 1) there"),
        ({"text": "a"}, {"text": "b"}, "text (0,): a here and b there"),
        ({"loss": 2.0}, {"loss": 2.001}, None),
        ({"loss": 2.0}, {"loss": 2.01}, "loss (0,): 2.0 here and 2.01 there"),
        ({"loss": float("nan")}, {"loss": 2.0}, "loss (0,): nan here and 2.0 there"),
        ({"loss": [100.0, 0.0]}, {"loss": [100.0, 0.05]}, None),
        ({"loss": [100.0, 0.0]}, {"loss": [100.0, 0.2]}, "loss (1,): 0.0 here and 0.2 there"),
    ],
)
def test_difference(ours: dict[str, object], theirs: dict[str, object], found: str | None) -> None:
    assert difference(ours, theirs) == found


def _decoded(refdiff: list[float], transformers: list[float], *ceilings: tuple[float, ...]) -> dict[str, Any]:
    """What a report has of a row whose rounds took so many seconds: 8 tokens, 10 bytes here and 20 there."""
    answers = {
        "refdiff": [{"seconds": s, "amount": 8, "work": 10} for s in refdiff],
        "transformers": [{"seconds": s, "amount": 8, "work": 20} for s in transformers],
    }
    measured = [dict(zip(("kind", "rate", "read"), ("gemv", *found), strict=False)) for found in ceilings]
    return evaluate(BenchRow("decode", 128), answers, measured)


def test_answers_are_evaluated() -> None:
    """A machine that slows down for both leaves the ratio alone, which a ratio of medians would not."""
    found = _decoded([1.0, 10.0, 2.0], [2.0, 30.0, 3.0], (20.0,), (1.0,), (2.0,), (10.0,))
    assert (found["row"], found["unit"], found["error"]) == ("decode:128", "tok/s", None)
    assert found["sides"]["refdiff"] == {
        "seconds": [1.0, 10.0, 2.0],
        "rate": {"median": 4.0, "low": 0.8, "high": 8.0},
    }
    assert found["against"]["transformers"] == {"ratio": {"median": 2.0, "low": 1.5, "high": 3.0}, "difference": None}
    assert found["ceiling"]["kind"] == "gemv"
    assert found["ceiling"]["rates"] == [20.0, 2.0, 10.0], "the better of before and after"
    assert found["ceiling"]["share"]["refdiff"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert found["ceiling"]["share"]["transformers"]["median"] == pytest.approx(0.5), "by what it reads itself"
    assert found["ceiling"]["counted"] == {"refdiff": 10, "transformers": 20}
    assert found["ceiling"]["doubtful"] == []
    assert not failed(found)
    with pytest.raises(ValueError):
        _decoded([1.0, 10.0], [2.0])


@pytest.mark.parametrize(
    ("ceilings", "most", "doubtful"),
    [
        ([(9.4,)] * 3, None, ["refdiff"]),
        ([(9.6,)] * 3, None, []),
        ([(8.0, 9.6), (8.0, 1.0), (8.0, 9.6)], [9.6, 9.6], []),
        ([(8.0, 9.4), (8.0, 1.0), (8.0, 9.4)], [9.4, 9.4], ["refdiff"]),
        ([(8.0, 2.0)] * 3, [8.0, 8.0], ["refdiff"]),
    ],
)
def test_more_than_there_is_is_doubted(
    ceilings: list[tuple[float, ...]], most: list[float] | None, doubtful: list[str]
) -> None:
    """The share is of gemv; the most that there can be is the better of gemv and read, each around the round."""
    ceiling = _decoded([1.0, 1.0], [4.0, 4.0], *ceilings)["ceiling"]
    assert ceiling["share"]["refdiff"]["median"] == 10 / ceilings[0][0]
    assert ceiling.get("read") == most
    assert ceiling["doubtful"] == doubtful


def test_less_memory_is_below_one() -> None:
    answers = {"refdiff": [{"bytes": 3}], "transformers": [{"bytes": 4}]}
    found = evaluate(BenchRow("memory", 128), answers)
    assert found["against"]["transformers"]["ratio"]["median"] == 0.75
    assert found["sides"]["refdiff"] == {"bytes": [3], "rate": {"median": 3, "low": 3, "high": 3}}
    assert (found["title"], found["ceiling"]) == ("memory 128", None)


def test_other_tokens_are_a_failure_but_where_sides_round_to_sixteen_bits() -> None:
    answers = {
        name: [{"seconds": 1.0, "passes": 3, "tokens": [n]}] for n, name in enumerate(("refdiff", "transformers"))
    }
    found = evaluate(BenchRow("cold"), answers)
    assert found["against"]["transformers"]["difference"] == "tokens (0,): 0 here and 1 there"
    assert found["sides"]["refdiff"]["passes"] == [3]
    assert failed(found)
    assert not failed(evaluate(BenchRow("cold"), answers, comparable=False))


def test_a_row_that_could_not_be_measured() -> None:
    found = evaluate(BenchRow("load"), {}, error=OSError("no\nroom"))
    assert failed(found)
    nothing = {"sides": {}, "against": {}, "ceiling": None, "error": "no room"}
    assert found == {"row": "load", "title": "load", "unit": "s", **nothing}


def test_a_report_has_the_commit_of_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.bench.report.commit", lambda: "abc1234")
    found = report([evaluate(BenchRow("load"), {})], BenchSettings("secret", steps=4), model=None)
    assert set(found) == {"format", "machine", "model", "settings", "rows"}
    assert [row["commit"] for row in found["rows"]] == ["abc1234"]
    assert found["settings"]["decoded_tokens"] == 4
    assert "secret" not in str(found)


def test_models_are_named_without_folders(tiny_checkpoint: Path) -> None:
    assert describe_model(None, None, None) is None
    named = describe_model(None, str(tiny_checkpoint), None)
    assert named is not None
    assert named["name"] == tiny_checkpoint.name
    assert describe_model(None, str(tiny_checkpoint), "kajuma/x") == {**named, "name": "x"}
    like = describe_model("tiny", str(tiny_checkpoint), None)
    assert like == {**named, "name": "random weights in the dimensions of tiny"}
