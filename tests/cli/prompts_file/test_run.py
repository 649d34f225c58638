"""Many prompts from one file: seeds, shards, failures, progress, Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest

from refdiff.cli import answering
from refdiff.cli.prompts_file import run

from ..conftest import Cli
from .conftest import Answer, rows_of


def test_one_prompt_a_line_and_each_answer_is_that_of_the_prompt_alone(
    command: list[str], tiny_checkpoint: Path, cli: Cli
) -> None:
    done = cli(*command, "-s", "40")
    rows = rows_of(done.out)
    assert "5 prompts answered, 0 failed" in done.err
    assert [row["prompt"] for row in rows] == ["ab", "c d ", "あ", "xyz", "last"]
    assert [(row["index"], row["seed"]) for row in rows] == [(i, 40 + i) for i in range(5)]
    for row in rows:
        alone = ("generate", "-q", "--json", "-m", tiny_checkpoint, "-n", "6", "--temp", "1")
        assert json.loads(cli(*alone, "-s", row["seed"], "-p", row["prompt"]).out)["text"] == row["text"]


def test_shards_cover_each_prompt_once_with_the_same_answers(command: list[str], here: Path, cli: Cli) -> None:
    assert cli(*command, "-q", "-o", "all.jsonl") == (0, "", "")
    parts = []
    for shard in range(3):
        assert cli(*command, "-q", "--num-shards", "3", "--shard-index", shard, "-o", f"{shard}.jsonl") == (0, "", "")
        part = rows_of(here / f"{shard}.jsonl")
        assert [row["index"] for row in part] == list(range(shard, 5, 3))
        parts += part
    assert sorted(parts, key=lambda row: row["index"]) == rows_of(here / "all.jsonl")
    assert [row["seed"] for row in rows_of(here / "all.jsonl")] == [0, 1, 2, 3, 4]


def test_jsonl_with_ids_and_options_of_its_own(answer: Answer) -> None:
    rows = [
        {"prompt": "ab", "id": "first", "max_new_tokens": 2, "label": 1},
        {"text": "c\u2028d", "id": 7, "seed": 100, "temperature": 0, "source": "x"},
        {"prompt": "e", "stop": ["q", "r"], "num_beams": 2},
        {"prompt": "f", "stop": "s"},
    ]
    done = answer(rows, "-n", "5", "--ignore-eos")
    found = rows_of(done.out)
    assert [row.get("id") for row in found] == ["first", 7, None, None]
    assert [row["generated_tokens"] for row in found[:2]] == [2, 5]
    assert [row["seed"] for row in found] == [0, 100, 2, 3]
    assert found[1]["prompt"] == "c\u2028d"
    assert "unknown fields are ignored: label, source" in done.err


def test_options_that_prompts_share_are_digested_once(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard looks at all prompts of the file, and the digest takes longer than all else."""
    digest, waiting = Mock(wraps=run.digest), Mock(wraps=run.waiting)
    monkeypatch.setattr(run, "digest", digest)
    monkeypatch.setattr(run, "waiting", waiting)
    rows = [{"prompt": "ab", "temperature": i % 2, "seed": i} for i in range(40)]
    assert len(rows_of(answer(rows, "-n", "1", "--num-shards", "40").out)) == 1
    assert digest.call_count == 4  # two, when the file is checked and when it is answered
    assert waiting.call_args_list == [call("reading prompts", quiet=False)]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"prompt": "x" * 600}, "prompt: got 601 tokens, expected fewer than 512"),
        ({"prompt": "c", "top_k": -1}, "top_k: got -1, expected a whole number of at least 0"),
    ],
)
def test_a_failing_prompt_is_reported_and_the_rest_are_answered(
    bad: dict[str, Any], said: str, answer: Answer, here: Path
) -> None:
    good, flags = {"prompt": "ab", "max_new_tokens": 2}, ("-o", "out.jsonl")
    rows = [good, bad, good]
    for answered in (2, 0):  # tried again, and again reported
        done = answer(rows, *flags)
        assert done.status == 1
        assert [row["index"] for row in rows_of(here / "out.jsonl")] == [0, 2]
        assert f"error: prompts line 2: {said}" in done.err
        assert f"{answered} prompts answered, 1 failed" in done.err
    with pytest.raises(ValueError, match=said):
        answer(rows, *flags, "--debug")


def test_ctrl_c_keeps_what_is_done(command: list[str], here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = here / "whole.jsonl", here / "stopped.jsonl"
    assert cli(*command, "-q", "-o", whole).status == 0
    with monkeypatch.context() as patch:
        patch.setattr(answering, "length_limit", Mock(side_effect=[6, 6, KeyboardInterrupt]))
        done = cli(*command, "-o", stopped)
    assert (done.status, len(rows_of(stopped))) == (130, 2)
    assert "2 of 5 prompts answered; the same command resumes here" in done.err
    assert cli(*command, "-o", stopped).status == 0
    assert stopped.read_bytes() == whole.read_bytes()


def test_messages_go_through_the_template_and_are_answered_once(answer: Answer, reciting: Path, here: Path) -> None:
    said = [("user", "a"), ("assistant", "b"), ("user", "h")]
    messages = [{"role": role, "content": text} for role, text in said]
    rows = [{"messages": messages, "max_tokens": 1}, {"prompt": "hi", "system": "own"}, {"prompt": "hi"}]
    flags = ("--echo", "--chat", "--system", "common", "-n", "1", "-o", "out.jsonl")
    assert answer(rows, *flags, model=reciting).status == 0
    row, *others = rows_of(here / "out.jsonl")
    assert (row["messages"], row["generated_tokens"], "prompt" in row) == (messages, 1, False)
    assert row["text"].startswith("[user] a\n[assistant] b\n[user] h\n[bot] ")
    assert [row["text"].split("\n")[0] for row in others] == ["[system] own", "[system] common"]
    done = answer(rows, *flags, model=reciting)
    assert done.status == 0
    assert "3 of 3 prompts are answered" in done.err


def test_nothing_left_to_do_loads_no_model(
    command: list[str], here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*command, "-o", "out.jsonl").status == 0
    before = (here / "out.jsonl").read_bytes()
    monkeypatch.setattr("refdiff.cli.prompts_file.batches.load", None)  # a call fails
    assert cli(*command, "-o", "out.jsonl").status == 0
    assert (here / "out.jsonl").read_bytes() == before


def test_filters_with_temperature_0_need_a_row_that_samples(answer: Answer) -> None:
    flags = ("-q", "-n", "1", "--temp", "0", "--top-k", "5")
    done = answer([{"prompt": "ab"}, {"prompt": "ab", "temperature": 0}], *flags)
    assert done.status == 2
    assert "--top-k: no effect with --temperature 0" in done.err
    assert answer([{"prompt": "ab", "temperature": 0.5}], *flags).status == 0


def test_a_system_message_without_chat_is_said_to_be_ignored(answer: Answer) -> None:
    done = answer([{"prompt": "ab", "system": "s"}] * 2, "-q", "-n", "1")
    said = "refdiff: warning: prompts: system has a place in a chat template only, ignored; add --chat\n"
    assert (done.status, done.err) == (0, said)


def test_prompts_that_are_all_bad_are_an_input_that_is(answer: Answer) -> None:
    done = answer([{"prompt": 1}, {"prompt": 2}])
    assert done.status == 2
    assert "; and 1 more such lines" in done.err
