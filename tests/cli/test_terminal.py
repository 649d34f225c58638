"""Messages of one line, and text that could drive a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from itertools import pairwise
from random import Random

import pytest

from refdiff import CheckpointError
from refdiff.cli.process import silence_panics
from refdiff.cli.terminal import (
    format_error,
    note,
    one_line,
    print_report,
    text_writer,
    waiting,
    write_text,
)
from refdiff.messages import NATIVE_CALLS

from ..conftest import wait_until


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("top_p is 2:\n  use 1"), "top_p is 2: use 1"),
        (CheckpointError("m: 2 problems:\n  a\n  b"), "m: 2 problems: a; b"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), "x.txt: no such file"),
        (IsADirectoryError(21, "Is a directory", "x"), "x: got a folder, expected a file"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError("no device"), "no device"),
        (ZeroDivisionError(), "ZeroDivisionError; --debug shows where"),
        (MemoryError(), "out of memory: the model does not fit; a smaller model or a shorter text needs less"),
    ],
)
def test_errors_become_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


@pytest.mark.parametrize("terminal", [True, False])
def test_a_models_text_cannot_drive_a_terminal(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a\x1b[2Jb\r\x9b\u202e\u2066日本\t👨\u200d👩\u3000\xa0\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    write_text(text)
    assert capsys.readouterr().out == (
        "a\\x1b[2Jb\\r\\x9b\\u202e\\u2066日本\t👨\u200d👩\u3000\xa0\n" if terminal else text
    )


TALE = (
    "It was a king who said, that 日本語の王子は森の中に小さな家を見つけました and "
    + "x" * 90
    + " went.\n\n  He did.\n"
)


@pytest.mark.parametrize("seed", range(20))
def test_lines_of_text_on_a_terminal_break_between_words(
    seed: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, cuts = Random(seed).randint(8, 60), sorted(Random(seed).choices(range(len(TALE)), k=40))
    monkeypatch.setenv("COLUMNS", str(columns))
    pieces = [TALE[a:b] for a, b in pairwise([0, *cuts, len(TALE)])]
    for terminal in (True, False):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        write = text_writer()
        for piece in pieces:
            write(piece)
        out = capsys.readouterr().out
        if terminal:
            assert out.replace("\n", "").replace(" ", "") == TALE.replace("\n", "").replace(" ", "")
            assert out.endswith("went.\n\n  He did.\n" if columns > 12 else "did.\n")
            assert max(sum(1 + (c > "\u2e80") for c in line) for line in out.splitlines()) <= columns
            assert set(TALE.split()) - set(out.split()) <= {w for w in TALE.split() if len(w) > 8 or w[0] > "z"}
        else:
            assert out == TALE


@pytest.mark.parametrize(
    ("terminal", "variables"), [(True, {}), (True, {"NO_COLOR": "1"}), (True, {"TERM": "dumb"}), (False, {})]
)
def test_verdicts_have_a_color_on_a_terminal(
    terminal: bool, variables: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TERM": "xterm", "NO_COLOR": "", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    text = "fail, judged\n  out          pass\n  lse          inconclusive  0\na pass fails, passes\x1b[31m"
    print_report({}, text)
    colored = (
        "\x1b[31mfail\x1b[m, judged\n  out          \x1b[32mpass\x1b[m\n  lse          \x1b[33minconclusive\x1b[m  0\n"
    )
    plain = text.replace("\x1b", "\\x1b") + "\n"
    assert capsys.readouterr().out == (colored + plain.splitlines()[-1] + "\n" if terminal and not variables else plain)


def test_names_in_a_report_cannot_drive_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[31m\x07\x7f\x9b\u202e日本\u200d👩"
    print_report({"name": name}, f"{name}\n" + "x" * 9_000)
    print_report({"name": name})
    text, fields = capsys.readouterr().out.split("{")
    assert text == "\\x1b[31m\\x07\\x7f\\x9b\\u202e日本\\u200d👩\n" + "x" * 9_000 + "\n"
    assert fields == '\n  "name": "\\u001b[31m\\u0007\\u007f\\u009b\\u202e日本\u200d👩"\n}\n'
    assert json.loads("{" + fields) == {"name": name}


def test_output_of_a_native_call_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    with silence_panics():
        os.write(2, b"before\n")
        with pytest.raises(KeyError), NATIVE_CALLS.get()():
            os.write(2, b"dropped\n")
            raise KeyError
        os.write(2, b"between\n")
    with NATIVE_CALLS.get()():
        os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nbetween\nafter\n"


def test_no_text_in_a_message_can_pass_for_another_message(capsys: pytest.CaptureFixture[str]) -> None:
    note("m: no such file\nrefdiff: error: false")
    note("")
    note(format_error(CheckpointError("m: 2 problems:\n  one\n  two")))
    err = capsys.readouterr().err
    assert err == "m: no such file\n  refdiff: error: false\n\nm: 2 problems:\n  one\n  two\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_message_on_a_terminal_breaks_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    err, name = _Terminal(), "a_long_name/" * 5
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("COLUMNS", "40")
    note(f"refdiff train: error: {name} was not found anywhere; make it first, or name another")
    lines = err.getvalue().splitlines()
    assert lines[1] == f"  {name}"
    assert all(line.startswith("  ") for line in lines[1:])
    assert max(len(line) for line in lines if name not in line) <= 40


def test_a_message_takes_the_line_of_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the next second of the line comes between two writes."""

    class Slow(_Terminal):
        def write(self, text: str) -> int:
            written = super().write(text)
            if text == "\r\x1b[K" and threading.current_thread() is threading.main_thread():
                wait_until(lambda: not self.getvalue().endswith(text))
            return written

    monkeypatch.setattr("refdiff.cli.terminal.AFTER", 0.01)
    err = Slow()
    monkeypatch.setattr("sys.stderr", err)
    with waiting("computing"):
        wait_until(lambda: "computing" in err.getvalue())
        note("a warning")
    note("another")
    shown = r"(\rcomputing ... \d+ s\x1b\[K)+"
    assert re.fullmatch(rf"{shown}\r\x1b\[Ka warning\n({shown})?\r\x1b\[Kanother\n", err.getvalue())
