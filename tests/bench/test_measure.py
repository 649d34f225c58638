"""Rows: turns, requests, what answers come to, and all rows in real processes on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest

from refdiff.bench import measure as bench
from refdiff.bench.measure import Measured, difference, sixteen_tokens
from refdiff.bench.processes import ChildError
from refdiff.bench.rows import Row, Work, parse_rows
from refdiff.bench.side import Settings
from refdiff.errors import CheckpointError


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ({"tokens": [[1, 2], [3, 4]]}, {"tokens": [[1, 2], [3, 5]]}, "token 1 of row 1 is 4 here and 5 there"),
        ({"tokens": [7, 8]}, {"tokens": [7, 9]}, "token 0 of row 1 is 8 here and 9 there"),
        ({"text": "a"}, {"text": "b"}, "the text is 'a' here and 'b' there"),
        ({"loss": 2.0}, {"loss": 2.001}, None),
        ({"loss": 2.0}, {"loss": 2.01}, "the loss is 2 here and 2.01 there"),
        ({"loss": float("nan")}, {"loss": 2.0}, "the loss is nan here and 2 there"),
        ({"sample": [100.0, 0.0]}, {"sample": [100.0, 0.05]}, None),
        ({"sample": [100.0, 0.0]}, {"sample": [100.0, 0.2]}, "a result is 0 here and 0.2 there"),
        ({"tokens": [1, 2]}, {"tokens": [1]}, "there are (2, 1) tokens here and (1, 1) there"),
    ],
)
def test_difference(ours: dict[str, object], theirs: dict[str, object], found: str | None) -> None:
    assert difference(ours, theirs) == found


GEMV = Work("tok/s", "gemv", 8, 10)


def _decoded(refdiff: list[float], transformers: list[float], *rates: list[float]) -> dict[str, Any]:
    """What JSON has of a row whose rounds took so many seconds."""
    answers = {"refdiff": [{"seconds": s} for s in refdiff], "transformers": [{"seconds": s} for s in transformers]}
    return Measured(Row("decode", 128), GEMV, answers, *rates).to_dict()


def test_answers_are_evaluated() -> None:
    """A machine that slows down for both leaves the ratio alone, which a ratio of medians would not."""
    found = _decoded([1.0, 10.0, 2.0], [2.0, 30.0, 3.0], [20.0, 1.0, 2.0, 10.0])
    assert (found["row"], found["unit"], found["error"]) == ("decode:128", "tok/s", None)
    assert found["sides"]["refdiff"]["seconds"] == [1.0, 10.0, 2.0]
    assert found["sides"]["refdiff"]["rate"] == {"median": 4.0, "low": 0.8, "high": 8.0}
    assert found["against"]["transformers"] == {"ratio": {"median": 2.0, "low": 1.5, "high": 3.0}, "difference": None}
    assert found["ceiling"]["kind"] == "gemv"
    assert found["ceiling"]["rates"] == [20.0, 2.0, 10.0], "the better of before and after"
    assert found["ceiling"]["share"]["refdiff"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert found["ceiling"]["share"]["transformers"]["median"] == pytest.approx(0.25)
    assert found["ceiling"]["doubtful"] == []
    with pytest.raises(ValueError):
        _decoded([1.0, 10.0], [2.0])


@pytest.mark.parametrize(
    ("rates", "most", "doubtful"),
    [
        ([[9.4] * 3], None, ["refdiff"]),
        ([[9.6] * 3], None, []),
        ([[8.0] * 3, [9.6, 1.0, 9.6]], [9.6, 9.6], []),
        ([[8.0] * 3, [9.4, 1.0, 9.4]], [9.4, 9.4], ["refdiff"]),
        ([[8.0] * 3, [2.0] * 3], [8.0, 8.0], ["refdiff"]),
    ],
)
def test_more_than_there_is_is_doubted(rates: list[list[float]], most: list[float] | None, doubtful: list[str]) -> None:
    """The share is of gemv; the most that there can be is the better of gemv and read, each around the round."""
    ceiling = _decoded([1.0, 1.0], [2.0, 2.0], *rates)["ceiling"]
    assert ceiling["share"]["refdiff"]["median"] == 10 / rates[0][0]
    assert ceiling.get("read") == most
    assert ceiling["doubtful"] == doubtful


@pytest.mark.parametrize(
    ("work", "key", "values", "counted"),
    [
        (Work("tok/s", "gemv", 8, 2, matrices=10), "itemsize", (4, 2), [42, 22]),
        (Work("tok/s", "sgemm", 8, 50, spared=8), "sparing", (True, False), [42, 50]),
    ],
)
def test_each_side_is_compared_by_what_it_reads_or_does(work: Work, key: str, values: Any, counted: list[int]) -> None:
    answers = {name: [{"seconds": 1.0, key: value}] for name, value in zip(("refdiff", "stored"), values, strict=True)}
    ceiling = Measured(Row("decode", 128), work, answers, [100.0, 100.0]).to_dict()["ceiling"]
    assert list(ceiling["counted"].values()) == counted
    assert [ceiling["share"][name]["median"] for name in ("refdiff", "stored")] == [n / 100 for n in counted]


def test_less_memory_is_below_one() -> None:
    answers = {"refdiff": [{"bytes": 3, "own_bytes": 1}], "transformers": [{"bytes": 4, "own_bytes": None}]}
    measured = Measured(Row("memory", 128), Work("B"), answers)
    found = measured.to_dict()
    assert found["against"]["transformers"]["ratio"]["median"] == 0.75
    assert found["sides"]["refdiff"]["own_bytes"] == [1]
    assert "own_bytes" not in found["sides"]["transformers"]
    assert found["ceiling"] is None
    assert measured.title == "memory 128"
    assert Measured(Row("train", model="3m"), Work("B"), answers).title == "training memory, 3m"


def test_other_tokens_are_a_failure_but_where_sides_round_to_sixteen_bits() -> None:
    answers = {"refdiff": [{"seconds": 1.0, "tokens": [1]}], "transformers": [{"seconds": 9.0, "tokens": [2]}]}
    measured = Measured(Row("prefill", 5), Work("tok/s", amount=5), answers)
    assert measured.to_dict()["against"]["transformers"]["difference"] == "token 0 of row 0 is 1 here and 2 there"
    assert measured.failed
    assert not Measured(Row("prefill", 5), Work("tok/s", amount=5), answers, rounded=True).failed


def test_a_row_that_could_not_be_measured() -> None:
    measured = Measured(Row("load"), Work("s"), error="no room")
    assert measured.failed
    nothing = {"sides": {}, "against": {}, "ceiling": None, "error": "no room"}
    assert measured.to_dict() == {"row": "load", "title": "load", "unit": "s", **nothing}


class FakeChild(ExitStack):
    """A process that answers what it is asked, and remembers."""

    log: ClassVar[list[tuple[str, Any]]] = []
    living: ClassVar[int] = 0

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__()
        self.name = name
        self._note("new")
        FakeChild.living += 1
        self.callback(self._end)

    def _note(self, what: Any) -> None:
        FakeChild.log.append((self.name, what))

    def request(self, do: str, **arguments: Any) -> dict[str, Any]:
        self._note((do, *arguments.values()) if arguments else do)
        if do in ("gemv", "read", "sgemm"):
            return {"rate": 2e9 if do == "read" else 1e9}
        return {"seconds": 2.0, "bytes": 7, "own_bytes": 2, "tokens": [1], "loss": 3.0, "sample": [1.0]}

    def _end(self) -> None:
        self._note("end")
        FakeChild.living -= 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeChild]]:
    monkeypatch.setattr(bench, "Child", FakeChild)
    FakeChild.log, FakeChild.living = [], 0
    yield FakeChild
    assert FakeChild.living == 0


def _measure(
    folder: Path, spelled: str, against: tuple[str, ...] = ("transformers",), **settings: Any
) -> list[Measured]:
    (row,) = parse_rows(spelled)
    return bench.measure(row, Settings(str(folder), against=against, pairs=2, steps=3, rest=0, **settings))


def test_sides_take_turns_with_the_ceilings(fake: type[FakeChild], tiny_checkpoint: Path) -> None:
    (measured,) = _measure(tiny_checkpoint, "decode:9x2")
    a, b, c = "refdiff", "transformers", "ceilings"
    turn = [(a, ("decode", 9, 2)), (b, ("decode", 9, 2))]
    most = [(c, "gemv"), (c, "read")]
    assert fake.log == [
        *[(a, "new"), (a, "load"), (b, "new"), (b, "load")],
        *[(a, ("decode", 9, 2, 1)), (b, ("decode", 9, 2, 1)), (c, "new"), *most],
        *[*turn, *most],
        *[*reversed(turn), *most],
        *[(c, "end"), (b, "end"), (a, "end")],
    ]
    assert measured.to_dict()["sides"]["refdiff"]["rate"]["median"] == 3 * 2 / 2.0
    assert (measured.rates, measured.reads) == ([1e9] * 3, [2e9] * 3)


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ("prefill:500", ["new", "load", ("prefill", 128, 1), ("prefill", 500, 1), ("prefill", 500, 1), "end"]),
        ("lookup", ["new", "load", ("lookup", 20), "lookup", "lookup", "end"]),
        ("product:4", ["new", *[("product", 4)] * 3, "end"]),
        ("train:tiny", ["new", "train", "train", "train", "end"]),
        ("load", ["new", "load", "end"] * 3),
        ("memory:9x2", ["new", ("memory", 9, 2), "end"] * 2),
    ],
)
def test_what_one_side_is_asked(row: str, asked: list[Any], fake: type[FakeChild], tiny_checkpoint: Path) -> None:
    """What warms up is not counted; what is loaded, or how much memory there is, has a new process each time."""
    measured = _measure(tiny_checkpoint, row, ())[0]
    assert [what for name, what in fake.log if name == "refdiff"] == asked
    assert len(measured.answers["refdiff"]) == 2
    assert len(measured.reads) == (3 if row == "product:4" else 0), "what can be read limits what reads weights"


def test_training_gives_its_memory_too(fake: type[FakeChild], tiny_checkpoint: Path) -> None:
    speed, memory = _measure(tiny_checkpoint, "train:tiny", batch=2, context=5)
    assert speed.to_dict()["unit"] == "tok/s"
    assert speed.to_dict()["sides"]["refdiff"]["rate"]["median"] == 2 * 5 / 2.0
    assert memory.title == "training memory, tiny"
    assert memory.to_dict()["sides"]["transformers"]["bytes"] == [7]


@pytest.mark.slow
def test_the_oracle_is_measured_in_a_new_process_each_time() -> None:
    found = list(bench.run(parse_rows("check:19x2,diagnose:23x2"), _settings(None)))
    assert [m.error for m in found] == [None] * 4
    assert [m.to_dict()["unit"] for m in found] == ["s", "B"] * 2
    assert [m.title for m in found[:2]] == ["check 19, 2 heads", "memory of check, 19 × 2"]
    assert found[0].answers["refdiff"][0]["seconds"] > 0
    assert found[1].answers["refdiff"][0]["bytes"] > 1e7


def test_the_start_of_a_command_is_what_a_user_runs(
    fake: type[FakeChild], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(bench, "first_output", lambda command, threads: ran.append(command) or (2.0, " a\n"))
    (measured,) = _measure(tiny_checkpoint, "cold")
    assert measured.answers["transformers"] == [{"seconds": 2.0, "text": "a"}] * 2
    assert ran[0][1:5] == ["-m", "refdiff", "generate", "-m"]
    assert "DiffLlama" not in ran[1][2]
    assert "AutoModelForCausalLM" in ran[1][2]
    assert len(ran) == 6


def test_a_prompt_of_sixteen_tokens(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert sixteen_tokens(str(tiny_checkpoint)) == "Once upon a tim"  # a byte a token, and <s>
    with pytest.raises(CheckpointError):
        sixteen_tokens(str(tmp_path))


def _settings(folder: Path | None) -> Settings:
    where = None if folder is None else str(folder)
    return Settings(where, pairs=1, steps=2, looked_up=20, least=0, rest=0, batch=2, context=8)


@pytest.mark.slow
def test_every_kind_of_row(tiny_checkpoint: Path) -> None:
    rows, settings = (
        parse_rows("prefill:5,decode:5x2,lookup,edit,memory:5,load,cold,train:tiny"),
        _settings(tiny_checkpoint),
    )
    turns: list[str] = []
    found = list(bench.run(rows, settings, lambda row, side: turns.append(f"{row.kind} {side}")))
    assert [m.error for m in found] == [None] * 9
    assert [m.row for m in found] == [*rows, rows[-1]]
    assert {"prefill refdiff", "prefill ceilings"} <= set(turns)
    report = bench.report(found, settings, model={"name": "tiny", "parameters": 1})
    assert json.loads(json.dumps(report)) == report
    assert set(report) == {"format", "machine", "model", "settings", "rows"}
    for row in report["rows"]:
        assert set(row) == {"row", "title", "unit", "sides", "against", "ceiling", "error", "commit"}
        assert all(value > 0 for value in row["sides"]["refdiff"]["rate"].values())
        if row["ceiling"]:
            assert all(0 < share < 2 for share in row["ceiling"]["share"]["refdiff"].values())
    assert str(tiny_checkpoint) not in json.dumps(report)


def test_a_row_that_fails_does_not_end_the_others(
    fake: type[FakeChild], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes end; before all rows each side is started once, so that what is not installed is said first."""
    request = FakeChild.request

    def failing(self: FakeChild, do: str, **arguments: Any) -> dict[str, Any]:
        if do == "prefill":
            raise ChildError("the process\nis gone")
        return request(self, do, **arguments)

    monkeypatch.setattr(FakeChild, "request", failing)
    failed, other = bench.run(parse_rows("prefill:4,load"), _settings(tiny_checkpoint))
    assert fake.log[:2] == [("refdiff", "new"), ("refdiff", "end")]
    assert failed.error == "the process is gone"
    assert failed.failed
    assert not other.failed


def test_checkpoints(tmp_path: Path) -> None:
    with bench.checkpoint(None, "there") as folder:
        assert folder == "there"
    with bench.checkpoint("tiny", str(tmp_path / "kept")) as folder:
        assert folder == str(tmp_path / "kept")
    assert (tmp_path / "kept" / "model.safetensors").exists()
    with bench.checkpoint("tiny", None) as folder:
        assert folder is not None
        assert (Path(folder) / "tokenizer.json").exists()
    assert not Path(folder).exists()


def test_models_are_named_without_folders(tiny_checkpoint: Path) -> None:
    assert bench.describe_model(None, None, None) is None
    named = bench.describe_model(None, str(tiny_checkpoint), None)
    assert named is not None
    assert named["name"] == tiny_checkpoint.name
    assert bench.describe_model(None, str(tiny_checkpoint), "kajuma/x") == {**named, "name": "x"}
    like = bench.describe_model("tiny", str(tiny_checkpoint), None)
    assert like == {**named, "name": "random weights in the dimensions of tiny"}
