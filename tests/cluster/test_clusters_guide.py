"""What the guide to clusters says, as it is written, with a port that is free."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import refdiff

from ..conftest import wait_until

TEXT = (Path(__file__).parents[2] / "notebooks" / "reference" / "guides" / "clusters.md").read_text(encoding="utf-8")


def _block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- end -->", TEXT, flags=re.DOTALL)
    assert found is not None
    return found[1]


def test_the_commands_run(tiny_checkpoint: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rows = [{"prompt": f"prompt {i}", "max_new_tokens": 3, "temperature": 1} for i in range(11)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = _block("cluster").replace("8786", str(port)).replace("PATH_OR_REPO", str(tiny_checkpoint)).splitlines()
    assert lines.pop(0) == 'pip install ".[dask]"'
    commands = "\n".join(lines)
    assert "dask scheduler" in commands
    (bin_ := tmp_path / "bin").mkdir()
    for name in ("refdiff", "dask"):  # those of this environment and tree
        (bin_ / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {name} "$@"\n')
        (bin_ / name).chmod(0o755)
    given = {**environment, "PATH": f"{bin_}:{environment['PATH']}"}
    shell = subprocess.Popen(
        ["sh", "-euc", commands], cwd=tmp_path, env=given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        out = tmp_path / "out.jsonl"
        wait_until(lambda: shell.poll() is not None)
        answered = [json.loads(line) for line in out.read_bytes().splitlines()]
        assert [row["prompt"] for row in answered] == [row["prompt"] for row in rows]
        assert shell.returncode == 0
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()


def test_joblib() -> None:
    names: dict[str, Any] = {}
    exec(_block("joblib"), names)
    model, tokenizer = names["model"], names["tokenizer"]
    expected = [model.generate([ids], max_new_tokens=20, seed=1)[0] for ids in names["prompts"]]
    assert names["texts"] == [tokenizer.decode(ids) for ids in expected]
    assert len(set(names["texts"])) == 3
    assert isinstance(model, refdiff.DiffLlamaForCausalLM)
