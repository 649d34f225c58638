"""The prompt from an argument, a flag, a file or standard input."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import pytest

from refdiff.cli.flags import UsageError
from refdiff.cli.prompt import add_prompt, check_prompt, read_prompt


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_prompt(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(raw: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))

    return give


def test_where_it_stands(tmp_path: Path, stdin: Any) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffé \r\n\r\n".encode())
    assert read_prompt(parsed(" a ")) == " a "
    assert read_prompt(parsed("--prompt", "c")) == "c"
    assert read_prompt(parsed("-f", str(file))) == "é \r\n"  # one newline goes, and a byte-order mark
    for arguments in (["-"], ["-f", "-"]):
        stdin("日\n".encode())
        assert read_prompt(parsed(*arguments)) == "日"


def test_errors(tmp_path: Path, stdin: Any) -> None:
    stdin(b"ab\xff")
    with pytest.raises(UsageError, match="standard input: not UTF-8 at byte 2"):
        read_prompt(parsed("-"))
    with pytest.raises(UsageError, match="no prompt: give it as an argument"):
        check_prompt(parsed())
    with pytest.raises(UsageError, match="PROMPT and -f each give the prompt; use one of them"):
        check_prompt(parsed("a", "-f", "b"))
    with pytest.raises(UsageError, match="-p and --lines each give the prompt"):
        check_prompt(parsed("-p", "a"), {"--lines": "c"})
    check_prompt(parsed("a"), {"--lines": None})
