"""A thousand cases of the fuzzer, and that it finds what it looks for; `python -m tests.fuzz` runs more."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff import CheckpointError
from tests.fuzz import run as fuzz
from tests.fuzz.bases import Base, make

CASES, STEP = 1000, 50


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def bases(work: Path) -> dict[str, Base]:
    return make(work)


@pytest.mark.parametrize(
    "first", [pytest.param(n, marks=[pytest.mark.slow] if n >= 2 * STEP else []) for n in range(0, CASES, STEP)]
)
def test_every_case_is_a_result_or_one_error(bases: dict[str, Base], work: Path, first: int) -> None:
    results = list(fuzz.run_many(bases, work, 0, first, STEP))
    assert [result for result in results if result.kind == "bad"] == []
    assert {result.kind for result in results} == {"result", "refused"}


def test_a_case_is_the_same_each_time(bases: dict[str, Base], work: Path) -> None:
    assert [result.what for result in fuzz.run_many(bases, work, 3, 7, 5)] == [
        fuzz.run(bases, work, 3, number).what for number in range(7, 12)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf", "paper", "v2", "golden", "trace", "prompts"])
def test_what_nothing_has_changed_is_read(bases: dict[str, Base], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "mutate", lambda folder, outside, rng: "nothing")
    work = bases[name].folder.parent
    for number in range(12):
        result = fuzz.run({name: bases[name]}, work, 0, number)
        allowed = {"result", "refused"} if "convert" in result.what else {"result"}
        assert result.kind in allowed, result


def hang() -> None:
    time.sleep(60)


def compute() -> None:
    while True:
        pass


def touch_memory() -> None:
    np.ones(800_000_000, np.uint8)


def ask_for_memory() -> None:
    np.ones(20_000_000_000, np.uint8)


def crash() -> None:
    import ctypes

    ctypes.string_at(0)


def fail() -> None:
    raise KeyError("x")


def print_escapes() -> None:
    sys.stdout.write("\x1b[2J")


def print_much() -> None:
    sys.stdout.write("x" * 300_000)


def print_addresses() -> None:
    sys.stdout.write(repr(object()))


def exit_oddly() -> None:
    sys.exit(7)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        pytest.param(hang, "died", marks=pytest.mark.slow), pytest.param(compute, "died", marks=pytest.mark.slow),
        (crash, "died"), (touch_memory, "took "), (ask_for_memory, "MemoryError"),
        (fail, "KeyError"), (print_escapes, "unprintable characters"), (print_much, "300,000 characters"),
        (print_addresses, "for programmers"), (exit_oddly, "exit 7"),
    ],
)  # fmt: skip
def test_what_a_case_must_not_do_is_found(
    action: Callable[[], Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if says == "died":
        monkeypatch.setattr(fuzz, "SECONDS", 5)
        monkeypatch.setattr(fuzz, "CPU_SECONDS", 1)
    (tmp_path / "case").mkdir()
    kind, said = fuzz.in_a_child(action, tmp_path / "case")
    assert kind == "bad"
    assert says in said


def test_errors_and_what_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / "inside").touch()
    (tmp_path / "secret").write_text("SECRET")

    def raised(error: Exception) -> Callable[[], None]:
        def action() -> None:
            raise error

        return action

    assert fuzz.in_a_child((folder / "inside").read_bytes, folder) == ("result", "")
    assert fuzz.in_a_child((tmp_path / "secret").read_bytes, folder)[0] == "bad"
    assert fuzz.in_a_child(raised(CheckpointError(f"{folder}: wrong")), folder)[0] == "refused"
    assert fuzz.in_a_child(raised(CheckpointError("wrong")), folder) == ("bad", "an error that names no file: wrong")
    assert fuzz.in_a_child(raised(ValueError("x" * 3000)), folder)[0] == "bad"
    assert fuzz.in_a_child(raised(ValueError("\x1b")), folder)[0] == "bad"
    assert fuzz.in_a_child(raised(OSError(5, "broken", "name")), folder)[0] == "refused"
    assert fuzz.in_a_child(raised(OSError(5, "broken")), folder)[0] == "bad"
    assert fuzz.in_a_child(lambda: json.loads("["), folder)[0] == "refused"
