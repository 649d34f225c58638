"""A real cluster on this machine: a scheduler and two workers, processes that are started as the README says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed import Client

import refdiff

from ..conftest import wait_until

TREE = Path(refdiff.__file__).parents[1]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def environment() -> dict[str, str]:
    """An environment in which a process runs the refdiff under test, wherever it is started."""
    return {**os.environ, "PYTHONPATH": str(TREE), "COLUMNS": "80", "PYTHONWARNINGS": "default"}


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start `python -m ARGUMENTS` in an empty folder; whatever still runs at the end is ended, with its children."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | Path, **options: object) -> subprocess.Popen[bytes]:
        with (tmp_path / f"log{len(started)}").open("wb") as log:
            given = {"stdout": log, "stderr": log, **options}
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, arguments)],
                cwd=tmp_path,
                env=environment,
                start_new_session=True,
                **given,
            )
        started.append(process)
        return process

    yield start
    for process in reversed(started):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def scheduler(start: Start, tmp_path: Path) -> str:
    """The address of a scheduler without workers, which writes into a file what port it has."""
    file = tmp_path / "scheduler.json"
    start("dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file)
    wait_until(lambda: file.exists() and file.read_text().endswith("}"))
    address: str = json.loads(file.read_text())["address"]
    return address


@pytest.fixture
def workers(start: Start, scheduler: str) -> list[subprocess.Popen[bytes]]:
    """Two workers of one thread each, without nannies that would start them again."""
    options = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
    processes = [start("dask", "worker", scheduler, *options) for _ in range(2)]
    with Client(scheduler, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
    return processes
