"""What earlier runs left in the file of answers, and what is added to it."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from refdiff.cli import main
from refdiff.cli.flags import UsageError
from refdiff.cli.prompts_file.answers import Answers
from refdiff.cli.prompts_file.reading import Prompt

from .conftest import rows_of

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("cut", [0, 1, 9, 10, 60, 200, -1])
def test_a_stopped_run_goes_on_and_ends_as_an_unstopped_one(
    cut: int, command: list[str], tmp_path: Path, capsys: Capture
) -> None:
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    assert main([*command, "-o", str(whole)]) == 0
    stopped.write_bytes(whole.read_bytes()[:cut])
    complete = stopped.read_bytes().count(b"\n")
    capsys.readouterr()
    assert main([*command, "-o", str(stopped)]) == 0
    assert stopped.read_bytes() == whole.read_bytes()
    err = capsys.readouterr().err
    assert (f"{complete} of 5 prompts are answered in {stopped} already" in err) == (complete > 0)
    assert f"{5 - complete} prompt{'s' * (complete != 4)} answered" in err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("-m other", "-m"), ("--dtype float64", "--dtype"), ("-n 5", "--max-new-tokens"),
        ("--temp 0.5", "--temperature"), ("--top-k 3", "--top-k"), ("--stop x", "--stop"),
        ("--ignore-eos", "--ignore-eos"),
        ("--echo", "--echo"),
        ("--chat", "--chat"), ("--top-p 0.5 --num-beams 2", "--top-p, --num-beams"),
    ],
)  # fmt: skip
def test_answers_of_another_model_or_other_options_are_refused_by_name(
    change: str, named: str, command: list[str], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.jsonl"
    assert main([*command, "-q", "-o", str(out)]) == 0
    before = out.read_bytes()
    assert main([*command, "-q", "-o", str(out), *change.split()]) == 2
    assert out.read_bytes() == before
    expected = f"{out} line 1: was made with another {named}; give the same or another -o"
    assert capsys.readouterr() == ("", f"refdiff generate: error: {expected}\n")


def test_what_changes_no_answer_goes_on(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    assert main([*command, "-q", "-o", str(out)]) == 0
    monkeypatch.chdir(Path(command[2]).parent)
    command[2] = Path(command[2]).name  # the same folder by another name
    assert main([*command, "-q", "-o", str(out), "--threads", "1", "-s", "0", "--offline"]) == 0


def test_the_options_of_a_row_are_compared_too(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    command = ["generate", "-m", str(tiny_checkpoint), "--prompts-file", str(path), "-n", "3", "-o", str(out)]
    path.write_text('{"prompt": "ab"}\n{"prompt": "cd", "temperature": 1}\n')
    assert main(command) == 0
    first, second = (row["run"] for row in rows_of(out))
    assert first != second
    path.write_text('{"prompt": "ab"}\n{"prompt": "cd", "temperature": 2}\n')
    assert main(command) == 2
    assert "line 2: was made with another --temperature; give the same or another -o" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"my precious notes\n", "line 1: not a line that generate wrote"),
        (b"my precious notes", "line 1: not a line that generate wrote"),
        (b'{"index": 0}\n', "line 1: not a line that generate wrote"),
        (b'{"index": 0, "prompt": "other", "seed": 0}\n', "line 1: answers a prompt that is not at index 0"),
        (b'{"index": [], "prompt": "other", "seed": 0}\n', "line 1: answers a prompt that is not at index []"),
        (b'{"index": 77, "prompt": "ab", "seed": 0}\n', "line 1: answers a prompt that is not at index 77"),
        (b'{"index": 0, "prompt": "ab", "seed": 9}\n', "line 1: has seed 9, this run would use 0"),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    content: bytes, expected: str, command: list[str], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    assert main([*command, "-o", str(out)]) == 2
    assert out.read_bytes() == content
    err = capsys.readouterr().err
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no flock there")
def test_two_runs_do_not_write_to_one_file(command: list[str], tmp_path: Path, capsys: Capture) -> None:
    import fcntl

    out = tmp_path / "out.jsonl"
    with out.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert main([*command, "-o", str(out)]) == 2
    assert "another run is writing to it" in capsys.readouterr().err


def test_without_locks_a_run_goes_without(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refused(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert main([*command, "-q", "-o", str(tmp_path / "a.jsonl")]) == 0
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert main([*command, "-q", "-o", str(tmp_path / "b.jsonl")]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="not on this system")
def test_output_to_nowhere(command: list[str]) -> None:
    assert main([*command, "-q", "-o", "/dev/null"]) == 0


def test_lines_are_synced_while_the_run_goes_on(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr("refdiff.cli.prompts_file.answers._SYNC_EVERY", -1.0)
    monkeypatch.setattr("os.fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    assert main([*command, "-q", "-o", str(tmp_path / "out.jsonl")]) == 0
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
            for index in (0, 1, 2_500, 4_999):
                assert answers.has(Prompt(index, text), index, "r")
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
