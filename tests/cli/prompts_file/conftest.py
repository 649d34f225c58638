"""A file of prompts, and the command that answers it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("ab\n\nc d \nあ\nxyz\nlast", encoding="utf-8")
    return path


@pytest.fixture
def command(tiny_checkpoint: Path, prompts: Path) -> list[str]:
    return ["generate", "-m", str(tiny_checkpoint), "--prompts-file", str(prompts), "-n", "6", "--temp", "1"]
