"""A file of prompts, and the command that answers it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refdiff.cli.parser import build_parser

from ..conftest import Cli, Done

Answer = Callable[..., Done]


def rows_of(written: Path | str) -> list[dict[str, Any]]:
    """The rows of a file, or of what was printed."""
    lines = written.split("\n") if isinstance(written, str) else written.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def arguments(folder: Path, *more: str) -> argparse.Namespace:
    return build_parser().parse_args(["generate", "-m", str(folder), "--prompts-file", "x", *more])


@pytest.fixture
def prompts(here: Path) -> Path:
    path = here / "prompts.txt"
    path.write_text("ab\n\nc d \nあ\nxyz\nlast", encoding="utf-8")
    return path


@pytest.fixture
def command(tiny_checkpoint: Path, prompts: Path) -> list[str]:
    return ["generate", "-m", str(tiny_checkpoint), "--prompts-file", str(prompts), "-n", "6", "--temp", "1"]


@pytest.fixture
def answer(tiny_checkpoint: Path, here: Path, cli: Cli) -> Answer:
    """Write rows of JSONL, or lines, and answer them."""

    def answer(rows: list[Any], *flags: object, model: Path = tiny_checkpoint) -> Done:
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (here / "prompts").write_text("\n".join(lines), encoding="utf-8")
        return cli("generate", "-m", model, "--prompts-file", "prompts", *flags)

    return answer
