"""What the guides say is run: here the one that needs no framework, among the parity tests the others."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import refdiff

GUIDES = Path(refdiff.__file__).parent / "oracle" / "guides"
NAMES = ("cuda", "jax", "mlx", "triton")


def blocks(guide: str, language: str) -> list[str]:
    text = (GUIDES / f"{guide}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```(?:{language})\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run_python(guide: str) -> dict[str, Any]:
    """Every block of Python in turn, in one namespace."""
    names: dict[str, Any] = {}
    for block in blocks(guide, "python"):
        exec(block, names)
    return names


def test_the_guide_for_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(refdiff.__file__).parents[1])}
    names: dict[str, Any] = {}
    said = []
    for block in blocks("cuda", "python|sh"):  # each needs what those above it wrote
        if not block.startswith("refdiff "):
            exec(block, names)
            continue
        for line in block.splitlines():
            command = [sys.executable, "-m", *shlex.split(line)]
            done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
            said.append(done.stdout)
    assert len(said) == 6
    assert said[1].startswith("pass: 5 cases with an output, 5 tensors judged\nnot given, so not judged: dq, dk, dv, ")


@pytest.mark.parametrize("guide", NAMES)
def test_links_and_commands(guide: str) -> None:
    text = (GUIDES / f"{guide}.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (GUIDES / link).resolve().exists(), link
    assert text.startswith("# For the author of a kernel ")
    assert len(text.splitlines()) < 100
    for block in blocks(guide, "python"):
        compile(block, guide, "exec")


def test_there_is_no_other() -> None:
    assert sorted(path.stem for path in GUIDES.glob("*.md")) == sorted(NAMES)
