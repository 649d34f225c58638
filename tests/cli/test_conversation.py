"""`refdiff generate --chat` without a prompt: history, commands, and what stops an answer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refdiff.cli import conversation
from refdiff.cli.parser import build_parser

from .conftest import Cli, end_texts, in_terminal

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def converse(reciting: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[dict[str, Any]]]]:
    """Type some lines; returns the messages that each answer was given."""

    def typed(*lines: str | type[BaseException], options: tuple[str, ...] = ()) -> list[list[dict[str, Any]]]:
        left, asked = iter(lines), []
        encode = conversation.encode

        def read(_: str) -> str:
            line = next(left, EOFError)
            if not isinstance(line, str):
                raise line
            return line

        def seen(model: Any, tokenizer: Any, prompt: str, messages: Any = None) -> Any:
            asked.append(list(messages))
            return encode(model, tokenizer, prompt, messages)

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(conversation, "encode", seen)
        words = ["generate", "--chat", "-m", str(reciting), "-n", "3", *options]
        assert conversation.converse(build_parser().parse_args(words)) == 0
        return asked

    return typed


def test_an_answer_is_given_what_was_said_before(converse: Any, capsys: Capture) -> None:
    first, second, third = converse("h", "", KeyboardInterrupt, "two", "/reset", "three", options=("--system", "s"))
    system = {"role": "system", "content": "s"}
    assert first == [system, {"role": "user", "content": "h"}]
    assert [m["role"] for m in second] == ["system", "user", "assistant", "user"]
    assert second[-1]["content"] == "two"
    assert third == [system, {"role": "user", "content": "three"}]
    out, err = capsys.readouterr()
    assert second[2]["content"] == out.splitlines()[0]
    assert "/reset starts anew, /save FILE writes all, /bye ends" in err


@pytest.fixture
def shorten(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Give the model a context of so many tokens."""

    def shorten(context: int) -> None:
        load = conversation.load

        def short(args: argparse.Namespace) -> Any:
            model, tokenizer = load(args)
            model.config.max_position_embeddings = context
            return model, tokenizer

        monkeypatch.setattr(conversation, "load", short)

    return shorten


@pytest.mark.filterwarnings("ignore:-n 3. prompt and new tokens go beyond")
@pytest.mark.parametrize(("length", "context"), [(20, 60), (40, 6)])  # in the second, ten contexts are full
def test_the_oldest_exchanges_are_forgotten_when_the_context_is_full(
    length: int, context: int, converse: Any, capsys: Capture, shorten: Callable[[int], None], tmp_path: Path
) -> None:
    """The file that /save writes has them all."""
    shorten(context)
    file = tmp_path / "chat.json"
    asked = converse("a" * length, "b" * length, "c" * length, f"/save {file}")
    assert asked[-1] == [{"role": "user", "content": "c" * length}]
    assert [m["content"][0] for m in json.loads(file.read_text()) if m["role"] == "user"] == ["a", "b", "c"]
    assert "the context is full; 2 messages from the beginning are forgotten" in capsys.readouterr().err


def test_a_message_longer_than_ten_contexts_leaves_the_conversation_as_it_was(
    converse: Any, capsys: Capture, shorten: Callable[[int], None]
) -> None:
    shorten(60)
    asked = converse("h", "b" * 700, "two")
    assert [m["content"] for m in asked[-1] if m["role"] == "user"] == ["h", "two"]
    err = capsys.readouterr().err
    assert "expected at most 600, 10 times the context" in err
    assert "forgotten" not in err


def test_ctrl_c_stops_one_answer_and_keeps_it(converse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    end_texts(monkeypatch, 2, KeyboardInterrupt())
    asked = converse("h", "again")
    assert [m["role"] for m in asked[-1]] == ["user", "assistant", "user"]


def test_a_message_that_cannot_be_answered_is_removed(converse: Any, capsys: Capture, tmp_path: Path) -> None:
    asked = converse("\udcff", "h", f"/save {tmp_path / 'none' / 'x'}")
    assert asked[-1] == [{"role": "user", "content": "h"}]
    err = capsys.readouterr().err
    assert "surrogate" in err
    assert "does not exist; make it first" in err


def test_commands(converse: Any, capsys: Capture) -> None:
    assert converse("/savex y", "/save chat.json", " /quit ", "h", options=("--system", "s")) == []
    err = capsys.readouterr().err
    assert "refdiff: /savex: unknown command; there are /help, /reset, /save FILE, /bye\n" in err
    assert "refdiff: /save: nothing has been said yet" in err
    assert max(map(len, err.splitlines())) <= 80


def test_a_saved_conversation_replaces_the_file(
    converse: Any, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    converse("h", "/save chat.json", "two", "/save chat.json")
    assert len(json.loads(Path("chat.json").read_text())) == 4
    assert "4 messages written to chat.json" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--json"], ["-o", "x.txt"]])
def test_options_that_it_would_ignore_are_refused(
    option: list[str], here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    done = cli("generate", "--chat", *option)
    assert done.status == 2
    assert f"{option[0]}: only for one prompt, a conversation has many" in done.err


def test_what_is_typed_during_an_answer_is_the_next_message(
    reciting: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    slow = """
import refdiff.cli, sys, termios, refdiff.cli.transcript as t
def put(self, ids, put=t.Transcript.put):
    put(self, ids)
    sys.stderr.write("[echo]" if termios.tcgetattr(0)[3] & termios.ECHO else "[silent]")
t.Transcript.put = put
sys.exit(refdiff.cli.main())
"""
    (tmp_path / "slow.py").write_text(slow)
    command = ("generate", "--chat", "-n", "3", "-m", reciting)
    status, seen = in_terminal(environment, tmp_path, *command, program=["slow.py"], typed=b"h\rh\r\x04")
    assert (status, seen.count("[silent]"), seen.count("[echo]")) == (0, 4, 0), seen
    assert seen.count("> h") == 2  # with echo again


def test_the_bundled_model_continues_a_tale_in_turns(cli: Cli) -> None:
    done = cli("generate", "--chat", "--echo", "-q", "-n", "8", "--system", "A tale.", "There was once a king.")
    assert done.status == 0, done.err
    assert done.out.startswith("A tale. There was once a king.")


def test_help_is_shown_and_bye_ends(converse: Any, capsys: Capture) -> None:
    assert converse("/help", "/bye", "h", options=("-q",)) == []
    assert "Ctrl-C stops an answer; /reset starts anew, /save FILE writes all, /bye ends\n" in capsys.readouterr().err
