"""A thousand cases of the fuzzer, and that it finds what it looks for; `python -m tests.fuzz` runs more."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from refdiff import CheckpointError
from refdiff.cli import terminal
from refdiff.cli.process import warnings_in_one_line
from tests.fuzz import run as fuzz
from tests.fuzz.actions import ACTIONS, check_lines
from tests.fuzz.bases import Base, make

CASES, STEP = 1000, 25


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def bases(work: Path) -> dict[str, Base]:
    bases = make(work)
    fuzz.warm_up(bases, work)
    return bases


@pytest.mark.parametrize(
    "first", [pytest.param(n, marks=[pytest.mark.slow] if n else []) for n in range(0, CASES, STEP)]
)
def test_every_case_is_a_result_or_one_error(bases: dict[str, Base], work: Path, first: int) -> None:
    results = list(fuzz.run_many(bases, work, 0, first, STEP))
    assert [result for result in results if result.kind == "bad"] == []
    assert {result.kind for result in results} == {"result", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf", "paper", "v2", "golden", "trace", "prompts"])
def test_unmodified_files_are_read(bases: dict[str, Base], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "mutate", lambda folder, outside, rng: "nothing")
    work = bases[name].folder.parent
    for number in range(12):
        result = fuzz.run({name: bases[name]}, work, 0, number)
        allowed = {"result", "refused"} if "convert" in result.what else {"result"}
        assert result.kind in allowed, result


def warn_in_a_command() -> None:
    with warnings_in_one_line():
        np.exp(np.float32(1000))


def write_no_json() -> None:
    Path("out.jsonl").write_text('{"prompt": "a", "text": "b", "id": Infinity}\n')
    check_lines(Path("out.jsonl"))


@pytest.mark.parametrize(
    ("action", "says"),
    [
        pytest.param(lambda: time.sleep(60), "died", marks=pytest.mark.slow, id="hang"),
        pytest.param(lambda: sum(itertools.count()), "died", marks=pytest.mark.slow, id="compute"),
        pytest.param(lambda: ctypes.string_at(0), "died", id="crash"),
        pytest.param(lambda: np.ones(80_000_000, np.uint8), "took ", id="touch memory"),
        pytest.param(lambda: np.ones(20_000_000_000, np.uint8), "MemoryError", id="ask for memory"),
        pytest.param(lambda: {}["x"], "KeyError", id="fail"),
        pytest.param(lambda: sys.exit(7), "SystemExit", id="exit oddly"),
        pytest.param(lambda: sys.stdout.write("\x1b[2J"), "unprintable characters", id="print escapes"),
        pytest.param(lambda: sys.stdout.write("x" * 300_000), "300,000 characters", id="print much"),
        pytest.param(lambda: sys.stdout.write(repr(object())), "for programmers", id="print addresses"),
        pytest.param(
            lambda: os.write(2, b"\nthread 'x' panicked at src/strip.rs:47:39:\n"), "for programmers", id="panic"
        ),
        pytest.param(lambda: np.exp(np.float32(1000)), "for programmers", id="warn of numbers"),
        pytest.param(warn_in_a_command, "for programmers", id="warn in a command"),
        pytest.param(write_no_json, "CommandError", id="write no JSON"),
    ],
)
def test_forbidden_behavior_of_a_case_is_found(
    action: Callable[[], Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if says == "died":
        monkeypatch.setattr(fuzz, "SECONDS", 5)
        monkeypatch.setattr(fuzz, "CPU_SECONDS", 1)
    if says == "took ":
        monkeypatch.setattr(fuzz, "MEMORY", 60 * 10**6)
    (tmp_path / "case").mkdir()
    monkeypatch.chdir(tmp_path / "case")
    kind, said = fuzz.in_a_child(action, tmp_path / "case")
    assert kind == "bad"
    assert says in said


@pytest.mark.parametrize("escaped", [True, False])
def test_what_a_terminal_would_obey_is_found(
    escaped: bool, bases: dict[str, Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless, folder = terminal._harmless, bases["hf"].folder
    monkeypatch.setattr(terminal, "_harmless", lambda text: harmless(text + "\x1b[2J") if escaped else text + "\x1b[2J")
    kind, said = fuzz.in_a_child(lambda: ACTIONS["generate"](folder, Random(1)), folder)
    assert (kind, "control characters" in said) == (("result", False) if escaped else ("bad", True))


def test_errors_and_what_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / "inside").touch()
    (tmp_path / "secret").write_text("SECRET")

    def of(error: Exception) -> tuple[str, str]:
        def action() -> None:
            raise error

        return fuzz.in_a_child(action, folder)

    assert fuzz.in_a_child((folder / "inside").read_bytes, folder) == ("result", "")
    assert fuzz.in_a_child((tmp_path / "secret").read_bytes, folder)[0] == "bad"
    assert of(CheckpointError(f"{folder}: wrong"))[0] == "refused"
    assert of(CheckpointError("wrong")) == ("bad", "CheckpointError that names no file: wrong")
    assert fuzz.in_a_child(lambda: json.loads("["), folder)[0] == "bad"
    for text in (f"{folder}{'x' * 3000}", f"{folder}\x1b"):
        assert of(ValueError(text))[0] == "bad"
    assert of(OSError(5, "broken", str(folder)))[0] == "bad"


def test_files_opened_by_libraries_and_copied_secrets_are_found(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    secret = tmp_path / "outside" / "secret"
    secret.write_text("SECRET")
    with fuzz.watched(tmp_path / "outside") as touched:
        pass
    assert touched == []
    with fuzz.watched(tmp_path / "outside") as touched:
        subprocess.run(["cat", str(secret)], check=True, capture_output=True)
    assert touched
    assert "secret" in touched[0]
    with fuzz.watched(tmp_path / "outside") as touched:
        (tmp_path / "outside" / "new").touch()
    assert touched
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "link").symlink_to(secret)
    assert list(fuzz.copies(tmp_path / "case")) == []
    (tmp_path / "case" / "copy").write_text("a SECRET")
    assert list(fuzz.copies(tmp_path / "case")) == [tmp_path / "case" / "copy"]
