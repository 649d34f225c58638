"""What earlier runs left in the file of answers, and what is added to it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from refdiff.cli.parser import build_parser
from refdiff.cli.prompts_file.answers import SAME_ANSWER, digest, open_answers

from ..conftest import Cli


@pytest.mark.parametrize("cut", [0, 9, 200, -1])
def test_a_resumed_run_writes_what_an_uninterrupted_one_does(
    cut: int, command: list[str], here: Path, cli: Cli
) -> None:
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
        ("--ignore-eos", "--ignore-eos"), ("--echo", "--echo"), ("--top-k 50", "--top-k"),
        ("-m other", "-m"), ("--dtype float64", "--dtype"), ("-n 5", "--max-new-tokens"), ("--stop x", "--stop"),
        ("--chat", "--chat"), ("--top-p 0.5 --num-beams 2", "--num-beams, --top-p"),
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


def test_every_option_is_compared_or_leaves_the_answer_as_it_is() -> None:
    defaults = vars(build_parser().parse_args(["generate"]))
    assert defaults.keys() >= SAME_ANSWER, "a name that is no option"
    for name in defaults.keys() - SAME_ANSWER:
        assert digest({**defaults, name: "another"}, defaults).startswith(f"{name}:")
    assert digest(defaults, defaults) == ""


def test_an_option_that_is_added_blocks_no_earlier_answers() -> None:
    given, defaults = {"top_k": 3, "stop": ["x"]}, {"top_k": None, "stop": []}
    assert digest({**given, "top_h": None}, {**defaults, "top_h": None}) == digest(given, defaults)


def test_answers_of_a_training_runs_earlier_checkpoint_are_refused(
    command: list[str], tiny_checkpoint: Path, here: Path, cli: Cli
) -> None:
    shutil.copytree(tiny_checkpoint, here / "run" / "step-000005")
    assert cli(*command, "-q", "-m", "run", "-o", "out.jsonl").status == 0
    shutil.copytree(tiny_checkpoint, here / "run" / "step-000200")
    done = cli(*command, "-q", "-m", "run", "-o", "out.jsonl")
    assert done.status == 2
    assert "out.jsonl line 1: was made with another -m; give the same or another -o" in done.err
    assert cli(*command, "-q", "-m", "run/step-000005", "-o", "out.jsonl").status == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"my precious notes", "line 1: not a line that generate wrote"),
        (b'{"index": 0}\n', "line 1: not a line that generate wrote"),
        (b'{"index": 0, "x": ' + b"[" * 100_000 + b"\n", "line 1: not a line that generate wrote"),
        (b'{"index": 0, "prompt": "other", "seed": 0}\n', "line 1: answers a prompt that is not at index 0"),
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


def test_nothing_changes_before_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"index": 0, "prompt": "a", "seed": 0, "run": "r"}\n{"index": 1, "pro')
    before = path.read_bytes()
    with open_answers(str(path)):
        pass
    assert path.read_bytes() == before
    with open_answers(str(path)) as answers:
        answers.write({"index": 2})
    assert path.read_bytes() == before.splitlines(keepends=True)[0] + b'{"index": 2}\n'
