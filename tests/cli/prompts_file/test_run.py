"""Many prompts from one file: seeds, shards, failures, progress, Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refdiff.cli import main
from refdiff.cli.transcript import Transcript

from .conftest import rows_of

Capture = pytest.CaptureFixture[str]


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
        assert [row["index"] for row in rows_of(part)] == list(range(shard, 5, 3))
        parts += rows_of(part)
    assert sorted(parts, key=lambda row: row["index"]) == rows_of(tmp_path / "all.jsonl")
    assert capsys.readouterr() == ("", "")


def test_nothing_left_to_do_loads_no_model(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    assert main([*command, "-o", str(out)]) == 0
    before = out.read_bytes()

    def refused(_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("refdiff.cli.prompts_file.batches.load", refused)
    assert main([*command, "-o", str(out)]) == 0
    assert out.read_bytes() == before


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
    assert "unknown fields are ignored: label, source" in err


def test_the_system_message_of_a_prompt(reciting: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "prompts"
    path.write_text('{"prompt": "hi", "system": "own"}\n{"prompt": "hi"}\n')
    command = ["generate", "-q", "-n", "1", "--echo", "--chat", "--system", "common", "-m", str(reciting)]
    assert main([*command, "--prompts-file", str(path)]) == 0
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert texts[0].startswith("[system] own\n")
    assert texts[1].startswith("[system] common\n")


def test_a_prompt_that_fails_is_reported_and_the_rest_go_on(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    path, out = tmp_path / "prompts", tmp_path / "out.jsonl"
    path.write_text(f"ab\n{'x' * 600}\ncd\n")
    command = ["generate", "-m", str(tiny_checkpoint), "--prompts-file", str(path), "-n", "0", "-o", str(out)]
    assert main(command) == 1
    assert [row["index"] for row in rows_of(out)] == [0, 2]
    err = capsys.readouterr().err
    assert f"error: {path} line 2: prompt: got 601 tokens, expected fewer than 512" in err
    assert "2 prompts answered, 1 failed" in err
    assert main(command) == 1  # tried again, and again reported
    assert [row["index"] for row in rows_of(out)] == [0, 2]
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
        if next(calls) == 5:  # two for each prompt
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Transcript, "put", interrupting)
        assert main([*command, "-o", str(stopped)]) == 130
    rows = rows_of(stopped)
    assert 0 < len(rows) < 5
    err = capsys.readouterr().err
    assert f"{len(rows)} of 5 prompts answered; the same command resumes here" in err
    assert main([*command, "-o", str(stopped)]) == 0
    assert stopped.read_bytes() == whole.read_bytes()


def test_a_bad_row_is_reported_and_the_rest_is_answered(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"prompt": "ab"}\n{"prompt": "c", "top_k": -1}\n{"prompt": "d"}\n')
    command = ["generate", "-m", str(tiny_checkpoint), "--prompts-file", str(path), "-n", "2", "-o", str(out)]
    for _ in range(2):  # the second run tries it again
        assert main(command) == 1
        assert [row["index"] for row in rows_of(out)] == [0, 2]
        err = capsys.readouterr().err
        assert f"error: {path} line 2: top_k: got -1, expected a whole number of at least 0" in err
    path.write_text('{"prompt": 1}\n{"prompt": 2}\n')
    assert main([*command[:-1], str(tmp_path / "none.jsonl")]) == 2
    assert "; and 1 more such lines" in capsys.readouterr().err


def test_messages_go_through_the_template_and_are_answered_once(
    reciting: Path, tmp_path: Path, capsys: Capture
) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "h"},
    ]
    path.write_text(json.dumps({"messages": messages, "max_tokens": 1}) + "\n")
    command = ["generate", "-m", str(reciting), "--echo", "--prompts-file", str(path), "-o", str(out)]
    assert main(command) == 0
    (row,) = rows_of(out)
    assert row["messages"] == messages
    assert "prompt" not in row
    assert row["text"].startswith("[user] a\n[bot] b\n[user] h\n[bot] ") or "[user] a\n" in row["text"]
    assert row["generated_tokens"] == 1
    capsys.readouterr()
    assert main(command) == 0
    assert "1 of 1 prompts are answered" in capsys.readouterr().err
