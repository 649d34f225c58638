"""`--prompts-file`: forms of the file, seeds, shards, and going on after a stop."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from refdiff.cli import main
from refdiff.cli.flags import UsageError
from refdiff.cli.prompts_file import Prompt, read_prompts
from refdiff.cli.transcript import Transcript

Capture = pytest.CaptureFixture[str]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("ab\n\nc d \nあ\nxyz\nlast", encoding="utf-8")
    return path


@pytest.fixture
def command(tiny_checkpoint: Path, prompts: Path) -> list[str]:
    return ["generate", "-m", str(tiny_checkpoint), "--prompts-file", str(prompts), "-n", "6", "--temp", "1"]


def test_one_prompt_a_line(command: list[str], capsys: Capture) -> None:
    assert main(command) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.split("\n")[:-1]]
    assert [row["prompt"] for row in rows] == ["ab", "c d ", "あ", "xyz", "last"]
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["seed"] for row in rows] == [0, 1, 2, 3, 4]
    assert set(rows[0]) == {
        "index",
        "prompt",
        "text",
        "finish_reason",
        "prompt_tokens",
        "generated_tokens",
        "seed",
        "run",
    }
    assert "5 prompts answered, 0 failed" in err


def test_each_answer_is_that_of_the_prompt_alone(command: list[str], tiny_checkpoint: Path, capsys: Capture) -> None:
    assert main([*command, "-s", "40", "-q"]) == 0
    for line in capsys.readouterr().out.split("\n")[:-1]:
        row = json.loads(line)
        alone = ["generate", "-q", "--json", "-m", str(tiny_checkpoint), "-n", "6", "--temp", "1"]
        assert main([*alone, "-s", str(40 + row["index"]), "-p", row["prompt"]]) == 0
        assert json.loads(capsys.readouterr().out)["text"] == row["text"]


def test_shards_cover_each_prompt_once_with_the_same_answers(
    command: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert main([*command, "-q", "-o", str(tmp_path / "all.jsonl")]) == 0
    parts = []
    for shard in range(3):
        part = tmp_path / f"part{shard}.jsonl"
        assert main([*command, "-q", "--num-shards", "3", "--shard-index", str(shard), "-o", str(part)]) == 0
        assert [row["index"] for row in _rows(part)] == list(range(shard, 5, 3))
        parts += _rows(part)
    assert sorted(parts, key=lambda row: row["index"]) == _rows(tmp_path / "all.jsonl")
    assert capsys.readouterr() == ("", "")


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
    assert (f"{complete} of 5 prompts are in {stopped} already" in err) == (complete > 0)
    assert f"{5 - complete} prompt{'s' * (complete != 4)} answered" in err


def test_nothing_left_to_do_loads_no_model(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    assert main([*command, "-o", str(out)]) == 0
    before = out.read_bytes()

    def refused(_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("refdiff.cli.generate.load", refused)
    assert main([*command, "-o", str(out)]) == 0
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    ["-m other", "--dtype float64", "-n 5", "--temp 0.5", "--top-k 3", "--stop x", "--ignore-eos", "--echo", "--chat"],
)
def test_answers_of_another_model_or_other_options_are_refused(
    change: str, command: list[str], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.jsonl"
    assert main([*command, "-q", "-o", str(out)]) == 0
    before = out.read_bytes()
    assert main([*command, "-q", "-o", str(out), *change.split()]) == 2
    assert out.read_bytes() == before
    expected = f"{out} line 1: is of another model, --dtype or options of generation; give the same ones or another -o"
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
    first, second = (row["run"] for row in _rows(out))
    assert first != second
    path.write_text('{"prompt": "ab"}\n{"prompt": "cd", "temperature": 2}\n')
    assert main(command) == 2
    assert "line 2: is of another model, --dtype or options" in capsys.readouterr().err


def test_one_is_singular(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "prompts"
    path.write_text("ab\n")
    assert main(["generate", "-m", str(tiny_checkpoint), "--prompts-file", str(path), "-n", "1"]) == 0
    assert "1 prompt answered, 0 failed" in capsys.readouterr().err


def test_filters_with_temperature_0_need_a_row_that_samples(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "prompts.jsonl"
    command = ["generate", "-q", "-m", str(tiny_checkpoint), "--prompts-file", str(path), "-n", "1", "--temp", "0"]
    path.write_text('{"prompt": "ab"}\n{"prompt": "ab", "temperature": 0}\n')
    assert main([*command, "--top-k", "5"]) == 2
    assert "--top-k: no effect with --temperature 0" in capsys.readouterr().err
    path.write_text('{"prompt": "ab", "temperature": 0.5}\n')
    assert main([*command, "--top-k", "5"]) == 0


def test_a_system_message_without_chat_is_said_to_be_ignored(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "ab", "system": "s"}\n{"prompt": "ab", "system": "s"}\n')
    assert main(["generate", "-q", "-m", str(tiny_checkpoint), "--prompts-file", str(path), "-n", "1"]) == 0
    assert capsys.readouterr().err == (
        f"refdiff: warning: {path}: system has a place in a chat template only, ignored; add --chat\n"
    )


def test_null_is_not_given(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text('{"prompt": null, "text": "a", "temperature": null, "stop": null, "system": null, "id": null}\n')
    assert read_prompts(str(path)) == [Prompt(0, "a")]


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
    monkeypatch.setattr("refdiff.cli.prompts_file._SYNC_EVERY", -1.0)
    monkeypatch.setattr("os.fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    assert main([*command, "-q", "-o", str(tmp_path / "out.jsonl")]) == 0
    assert len(sizes) == 6  # once a prompt, once at the end
    assert sizes == sorted(sizes)
    assert sizes[0] > 0


def test_jsonl_with_ids_and_options_of_its_own(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "ab", "id": "first", "max_new_tokens": 2, "label": 1},
        {"text": "c\u2028d", "id": 7, "seed": 100, "temperature": 0, "source": "x"},
        {"prompt": "e", "stop": ["q", "r"], "num_beams": 2},
        {"prompt": "f", "stop": "s"},
    ]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    assert main(["generate", "-m", str(tiny_checkpoint), "--prompts-file", str(path), "-n", "5", "--ignore-eos"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.split("\n")[:-1]]
    assert [row.get("id") for row in rows] == ["first", 7, None, None]
    assert [row["generated_tokens"] for row in rows[:2]] == [2, 5]
    assert [row["seed"] for row in rows] == [0, 100, 2, 3]
    assert rows[1]["prompt"] == "c\u2028d"
    assert "fields without a meaning here, ignored: label, source" in err


def test_the_system_message_of_a_prompt(reciting: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "prompts"
    path.write_text('{"prompt": "hi", "system": "own"}\n{"prompt": "hi"}\n')
    command = ["generate", "-q", "-n", "1", "--echo", "--chat", "--system", "common", "-m", str(reciting)]
    assert main([*command, "--prompts-file", str(path)]) == 0
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert texts[0].startswith("[system] own\n")
    assert texts[1].startswith("[system] common\n")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no prompts in it"),
        (b"\n \n", "no prompts in it"),
        (b"a\nb\xff\n", "line 2: not UTF-8"),
        (b'{"prompt": "a"}\nplain\n', "line 2: not JSON"),
        (b'{"prompt": "a"}\n\n["b"]\n', "line 3: not an object"),
        (b'{"promt": "a"}\n', 'line 1: needs a field "prompt" (or "text") that is a string'),
        (b'{"prompt": 5}\n', "that is a string"),
        (b'{"prompt": "a", "top_p": 7}\n', "line 1: top_p: 7 is out of range; give a number above 0 to 1 (1 = off)"),
        (b'{"prompt": "a", "max_new_tokens": "7"}\n', "max_new_tokens: '7' is not a whole number"),
        (b'{"prompt": "a", "stop": [""]}\n', "none empty"),
        (b'{"prompt": "a", "stop": 5}\n', "stop: 5 is neither a string nor a list of strings"),
        (b'{"prompt": "a", "system": 5}\n', "system: 5 is not a string"),
    ],
)
def test_a_wrong_prompts_file_names_its_line(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_prompts(str(path))
    assert str(error.value).startswith(str(path))
    assert expected in str(error.value)


def test_a_line_that_looks_like_json_but_is_no_object_is_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(b"\xef\xbb\xbf[1, 2]\r\n{not json\r\n")
    assert read_prompts(str(path)) == [Prompt(0, "[1, 2]"), Prompt(1, "{not json")]


def test_a_prompt_that_fails_is_reported_and_the_rest_go_on(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    path, out = tmp_path / "prompts", tmp_path / "out.jsonl"
    path.write_text(f"ab\n{'x' * 600}\ncd\n")
    command = ["generate", "-m", str(tiny_checkpoint), "--prompts-file", str(path), "-n", "0", "-o", str(out)]
    assert main(command) == 1
    assert [row["index"] for row in _rows(out)] == [0, 2]
    err = capsys.readouterr().err
    assert "error: prompt 1: the prompt has 601 tokens and the context 512" in err
    assert "2 prompts answered, 1 failed" in err
    assert main(command) == 1  # tried again, and again reported
    assert [row["index"] for row in _rows(out)] == [0, 2]
    with pytest.raises(ValueError, match="601 tokens"):
        main([*command, "--debug"])


def test_ctrl_c_keeps_what_is_done(
    command: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    assert main([*command, "-q", "-o", str(whole)]) == 0
    put, calls = Transcript.put, iter(range(10_000))

    def interrupting(self: Transcript, ids: Any) -> None:
        put(self, ids)
        if next(calls) == 17:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Transcript, "put", interrupting)
        assert main([*command, "-o", str(stopped)]) == 130
    rows = _rows(stopped)
    assert 0 < len(rows) < 5
    err = capsys.readouterr().err
    assert f"{len(rows)} of 5 prompts answered; the same command goes on from here" in err
    assert main([*command, "-o", str(stopped)]) == 0
    assert stopped.read_bytes() == whole.read_bytes()
