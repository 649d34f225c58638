"""Many prompts from one file: seeds, shards, failures, progress, Ctrl-C."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from refdiff.cli import answering

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


def test_the_guides_parts_have_each_prompt_once(tiny_checkpoint: Path, here: Path, environment: dict[str, str]) -> None:
    guide = Path(__file__).parents[3] / "notebooks" / "reference" / "guides" / "clusters.md"
    block = guide.read_text(encoding="utf-8").partition("<!-- shards -->\n```sh\n")[2].partition("```")[0]
    texts = ("ab", "c", "d", "e", "f")
    (here / "in.jsonl").write_text("".join(f'{{"prompt": "{text}"}}\n' for text in texts))
    block = block.replace("PATH_OR_REPO", str(tiny_checkpoint)).replace("refdiff", f"{sys.executable} -m refdiff")
    subprocess.run(["sh", "-euc", block], env=environment, check=True, stdin=subprocess.DEVNULL)
    assert sorted(row["prompt"] for row in rows_of(here / "out.jsonl")) == sorted(texts)


def test_jsonl_with_ids_and_seeds_of_its_own(answer: Answer) -> None:
    rows = [{"prompt": "ab", "id": "first", "label": 1}, {"text": "c\u2028d", "id": 7, "seed": 100, "source": "x"}]
    done = answer([*rows, {"prompt": "e"}], "-n", "5", "--ignore-eos")
    found = rows_of(done.out)
    assert [row.get("id") for row in found] == ["first", 7, None]
    assert [row["seed"] for row in found] == [0, 100, 2]
    assert found[1]["prompt"] == "c\u2028d"
    assert "unknown fields are ignored: label, source" in done.err


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"prompt": "x" * 600}, "prompt: got 601 tokens, expected fewer than 512"),
        ({"prompt": "c", "top_k": 1}, "top_k: got a field, expected an option of the command, for all prompts"),
    ],
)
def test_a_failing_prompt_is_reported_and_the_rest_are_answered(
    bad: dict[str, Any], said: str, answer: Answer, here: Path
) -> None:
    good, flags = {"prompt": "ab"}, ("-o", "out.jsonl", "-n", "0")
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
    rows = [{"messages": messages}, {"prompt": "hi", "system": "own"}, {"prompt": "hi"}]
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


def test_a_system_message_without_chat_is_refused(answer: Answer) -> None:
    done = answer([{"prompt": "ab", "system": "s"}, {"prompt": "ab"}], "-q", "-n", "1")
    said = "refdiff generate: error: prompts line 1: system: has a place in a chat template only; add --chat\n"
    assert (done.status, done.err, len(rows_of(done.out))) == (1, said, 1)


def test_prompts_that_are_all_bad_are_an_input_that_is(answer: Answer) -> None:
    done = answer([{"prompt": 1}, {"prompt": 2}])
    assert done.status == 2
    assert "; and 1 more such lines" in done.err
