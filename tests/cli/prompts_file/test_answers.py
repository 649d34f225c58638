"""What earlier runs left in the file of answers, and what is added to it."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path
from unittest.mock import Mock

import pytest

from refdiff.cli.flags import UsageError
from refdiff.cli.prompts_file.answers import Answers
from refdiff.cli.prompts_file.reading import Prompt

from ..conftest import Cli


@pytest.mark.parametrize("cut", [0, 9, 200, -1])
def test_a_stopped_run_goes_on_and_ends_as_an_unstopped_one(cut: int, command: list[str], here: Path, cli: Cli) -> None:
    whole, stopped = here / "whole.jsonl", here / "stopped.jsonl"
    assert cli(*command, "-o", "whole.jsonl").status == 0
    stopped.write_bytes(whole.read_bytes()[:cut])
    complete = stopped.read_bytes().count(b"\n")
    done = cli(*command, "-o", "stopped.jsonl")
    assert (done.status, stopped.read_bytes()) == (0, whole.read_bytes())
    assert (f"{complete} of 5 prompts are answered in stopped.jsonl already" in done.err) == (complete > 0)
    assert f"{5 - complete} prompt{'s' * (complete != 4)} answered" in done.err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("-m other", "-m"), ("--dtype float64", "--dtype"), ("-n 5", "--max-new-tokens"), ("--stop x", "--stop"),
        ("--chat", "--chat"), ("--top-p 0.5 --num-beams 2", "--top-p, --num-beams"),
    ],
)  # fmt: skip
def test_answers_of_another_model_or_other_options_are_refused_by_name(
    change: str, named: str, command: list[str], here: Path, cli: Cli
) -> None:
    out = here / "out.jsonl"
    assert cli(*command, "-q", "-o", "out.jsonl").status == 0
    before = out.read_bytes()
    said = f"out.jsonl line 1: was made with another {named}; give the same or another -o"
    done = cli(*command, "-q", "-o", "out.jsonl", *change.split())
    assert done == (2, "", f"refdiff generate: error: {said}\n")
    assert out.read_bytes() == before


def test_what_changes_no_answer_goes_on(
    command: list[str], here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = here / "out.jsonl"
    assert cli(*command, "-q", "-o", out).status == 0
    monkeypatch.chdir(Path(command[2]).parent)
    command[2] = Path(command[2]).name  # the same folder by another name
    assert cli(*command, "-q", "-o", out, "--threads", "1", "-s", "0", "--offline").status == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"my precious notes", "line 1: not a line that generate wrote"),
        (b'{"index": 0}\n', "line 1: not a line that generate wrote"),
        (b'{"index": 0, "prompt": "other", "seed": 0}\n', "line 1: answers a prompt that is not at index 0"),
        (b'{"index": [], "prompt": "other", "seed": 0}\n', "line 1: answers a prompt that is not at index []"),
        (b'{"index": 0, "prompt": "ab", "seed": 9}\n', "line 1: has seed 9, this run would use 0"),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    content: bytes, expected: str, command: list[str], here: Path, cli: Cli
) -> None:
    (here / "out.jsonl").write_bytes(content)
    done = cli(*command, "-o", "out.jsonl")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert expected in done.err
    assert (here / "out.jsonl").read_bytes() == content


@pytest.mark.skipif(sys.platform == "win32", reason="no flock there")
def test_two_runs_do_not_write_to_one_file(
    command: list[str], here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    with (here / "out.jsonl").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        done = cli(*command, "-o", "out.jsonl")
        assert done.status == 2
        assert "another run is writing to it" in done.err
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(95, "Operation not supported")))
        assert cli(*command, "-q", "-o", "out.jsonl").status == 0, "where there are no locks"


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="not on this system")
def test_output_to_nowhere(command: list[str], cli: Cli) -> None:
    assert cli(*command, "-q", "-o", "/dev/null").status == 0


def test_lines_are_synced_while_the_run_goes_on(command: list[str], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr("refdiff.cli.prompts_file.answers._SYNC_EVERY", -1.0)
    monkeypatch.setattr("os.fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    assert cli(*command, "-q", "-o", "out.jsonl").status == 0
    assert len(sizes) == 6  # once a prompt, once at the end
    assert sizes == sorted(sizes)
    assert sizes[0] > 0


def test_32_bytes_for_each_answer(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    text = "x" * 500
    with path.open("w") as file:
        for index in reversed(range(5_000)):
            file.write(json.dumps({"index": index, "prompt": text, "seed": index, "run": "r"}) + "\n")
    tracemalloc.start()
    try:
        with Answers(str(path)) as answers:
            assert tracemalloc.get_traced_memory()[0] < 5_000 * 40 + 50_000  # of 2.8 MB
            assert answers.has(Prompt(2_500, text), 2_500, "r")
            assert not answers.has(Prompt(5_000, text), 0, "r")
            answers.check_count(5_000)
            with pytest.raises(UsageError, match=r"out.jsonl line 1: answers a prompt that is not at index 4999"):
                answers.check_count(4_999)
            with pytest.raises(UsageError, match=r"out.jsonl line 4998: has seed 2, this run would use 3"):
                answers.has(Prompt(2, text), 3, "r")
    finally:
        tracemalloc.stop()


def test_both_answers_of_a_prompt_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps({"index": 0, "prompt": "a", "seed": 0, "run": run}) + "\n" for run in "rs"))
    with (
        Answers(str(path)) as answers,
        pytest.raises(UsageError, match="line 2: was made with another model or option"),
    ):
        answers.has(Prompt(0, "a"), 0, "r")


def test_nothing_changes_before_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"index": 0, "prompt": "a", "seed": 0, "run": "r"}\n{"index": 1, "pro')
    before = path.read_bytes()
    with Answers(str(path)):
        pass
    assert path.read_bytes() == before
    with Answers(str(path)) as answers:
        answers.write({"index": 2})
    assert path.read_bytes() == before.splitlines(keepends=True)[0] + b'{"index": 2}\n'
