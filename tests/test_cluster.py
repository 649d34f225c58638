"""What is said without dask.distributed; tests/cluster has a real cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from refdiff.cli import main


def test_the_command_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    (tmp_path / "prompts").write_text("ab\n")
    assert main(["generate", "--prompts-file", str(tmp_path / "prompts"), "--dask", "tcp://127.0.0.1:1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("refdiff generate: error: --dask needs dask.distributed")
