"""`refdiff generate --prompts-file --dask` on two workers: the texts of one machine, also when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from refdiff.cli import main

from ..conftest import wait_until
from .conftest import Start

Capture = pytest.CaptureFixture[str]
Workers = list["subprocess.Popen[bytes]"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": f"{'ab ' * (i % 5)}prompt {i}", "id": f"no. {i}"} for i in range(40)]
    rows[3] |= {"seed": 7}
    rows[8] |= {"temperature": 0}
    rows[11] |= {"max_new_tokens": 3, "stop": "e"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def command(tiny_checkpoint: Path, prompts: Path) -> list[str]:
    return ["generate", "-m", str(tiny_checkpoint), "--prompts-file", str(prompts), "-n", "12", "--temp", "1"]


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("size", ["1", "4"])
def test_the_lines_are_those_of_one_machine(
    size: str, command: list[str], scheduler: str, tmp_path: Path, capsys: Capture
) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    command += ["--batch-size", size]
    assert main([*command, "-q", "-o", str(here), "--threads", "1"]) == 0
    assert main([*command, "-o", str(there), "--dask", scheduler]) == 0
    assert there.read_bytes() == here.read_bytes()
    assert "40 prompts answered, 0 failed" in capsys.readouterr().err
    with Client(scheduler, set_as_default=False) as client:
        plugins = client.run(lambda dask_worker: [name for name in dask_worker.plugins if "refdiff" in name])
        assert list(plugins.values()) == [[], []], "no worker keeps the model"


def test_a_killed_worker_costs_only_what_it_had_not_finished(
    command: list[str], scheduler: str, workers: Workers, start: Start, tmp_path: Path
) -> None:
    """The pipe holds a third of the lines, and the worker is killed before more are read: in the middle."""
    here = tmp_path / "here.jsonl"
    command[command.index("-n") + 1] = "80"
    assert main([*command, "-q", "--ignore-eos", "-o", str(here), "--threads", "1"]) == 0
    assert here.stat().st_size > 3 * 4096
    pipe = {"stdout": subprocess.PIPE, "bufsize": 0, "pipesize": 4096}
    run = start("refdiff", *command, "--ignore-eos", "--dask", scheduler, **pipe)
    assert run.stdout is not None
    begun = [run.stdout.readline() for _ in range(4)]
    workers[0].kill()
    assert workers[0].wait() == -signal.SIGKILL
    rest, _ = run.communicate(timeout=120)
    assert b"".join([*begun, rest]) == here.read_bytes()
    assert run.returncode == 0


@pytest.mark.usefixtures("workers")
def test_a_worker_without_the_model_is_named(
    command: list[str], scheduler: str, tmp_path: Path, capsys: Capture
) -> None:
    command[command.index("-m") + 1] = str(tmp_path / "no such model")
    assert main([*command, "--dask", scheduler]) == 1
    err = capsys.readouterr().err
    assert err.startswith("refdiff generate: error: worker tcp://127.0.0.1:")
    assert f"{tmp_path}/no such model: no such folder; each worker opens the model itself" in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("workers")
def test_a_lost_scheduler_is_reported(
    command: list[str], scheduler: str, start: Start, tmp_path: Path, environment: dict[str, str]
) -> None:
    out = tmp_path / "out.jsonl"
    command[command.index("-n") + 1] = "400"
    run = start("refdiff", *command, "--ignore-eos", "-o", out, "--dask", scheduler, stderr=subprocess.PIPE)
    wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 2)
    with Client(scheduler, set_as_default=False) as client:
        (pid,) = {client.run_on_scheduler(os.getpid)}
    os.kill(pid, signal.SIGKILL)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 1
    assert f"the scheduler at {scheduler} has gone".encode() in err
    assert b"Traceback" not in err


def test_other_versions_are_refused(
    command: list[str], scheduler: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {
        "client": {"packages": {"refdiff": "0.2"}},
        "workers": {"tcp://a:1": {"packages": {"refdiff": "0.2"}}, "tcp://b:1": {"packages": {"refdiff": None}}},
    }
    monkeypatch.setattr(Client, "wait_for_workers", lambda self, n, timeout: None)
    monkeypatch.setattr(Client, "get_versions", lambda self, packages: seen)
    assert main([*command, "--dask", scheduler]) == 1
    assert "worker tcp://b:1: got refdiff not installed, expected 0.2 as here; install the same version there" in (
        capsys.readouterr().err
    )
