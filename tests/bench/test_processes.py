"""Processes that answer requests, and never outlive their parent, nor do their commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refdiff.bench import processes
from refdiff.bench.processes import ChildError, child, environment
from refdiff.bench.rows import BenchRow
from refdiff.bench.sides import BenchSettings

WORK = BenchRow("train", model="tiny")
"""Needs no checkpoint."""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # it has gone meanwhile, or the system has no /proc
        return not Path("/proc/self").exists()


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not _alive(pid)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("KEPT", "yes")
    found = environment(3)
    assert not {"PYTHONDONTWRITEBYTECODE", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} & set(found)
    assert {found[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")} == {"3"}
    assert found["KEPT"] == "yes"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that are started."""
    started: list[int] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            started.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return started


def test_a_process_measures_several_times_and_ends(started: list[int]) -> None:
    with child("refdiff", WORK, BenchSettings()) as measure:
        for _ in range(2):
            assert measure()["bytes"] > 10_000_000
        assert _alive(started[0])
        assert os.getsid(started[0]) == started[0], "Ctrl-C in the terminal would reach it"
    assert _gone(started[0])
    with pytest.raises(KeyboardInterrupt), child("refdiff", WORK, BenchSettings()):
        raise KeyboardInterrupt
    assert _gone(started[1])


def test_an_error_in_a_process_is_reported(started: list[int]) -> None:
    failed = pytest.raises(ChildError, match=r"^refdiff: \w+: .*nowhere")
    with child("refdiff", BenchRow("load"), BenchSettings("nowhere")) as measure, failed:
        measure()
    with failed, child("refdiff", BenchRow("decode", 4), BenchSettings("nowhere")):
        pass
    with child("refdiff", WORK, BenchSettings()) as measure:
        os.kill(started[-1], signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(ChildError, match=r"refdiff: its process was killed by signal 9 \(out of memory\?\)"):
                measure()
    with pytest.raises(ChildError, match=r"^other: KeyError: 'other'"), child("other", WORK, BenchSettings()):
        pass
    assert all(map(_gone, started))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that children find packages in first."""
    (tmp_path / "refdiff").symlink_to(Path(processes.__file__).parents[1])
    monkeypatch.setattr(processes, "environment", lambda threads: {**environment(threads), "PYTHONPATH": str(tmp_path)})
    return tmp_path


def test_a_package_that_is_not_installed_is_named(packages: Path) -> None:
    (packages / "torch.py").write_text("raise ImportError('not here')\n")
    wanted = pytest.raises(
        ImportError, match=r"^--against transformers needs the package torch, .* \(not here\): pip install"
    )
    with wanted, child("transformers", BenchRow("load"), BenchSettings()):
        pass


def test_the_last_output_of_a_process_is_reported(packages: Path) -> None:
    last = "sys.stderr.write('noise\\nthe reason\\n'); sys.stderr.flush(); os.abort()"
    (packages / "torch.py").write_text(f"import os, sys\nprint('loud')\n{last}\n")
    how = "its process was killed by signal 6: the reason"
    with pytest.raises(ChildError, match=f"^transformers: {how}$"), child("transformers", WORK, BenchSettings()):
        pass


@pytest.fixture
def family(packages: Path) -> Callable[[], list[int]]:
    """Have a side start a command; what is returned names the process of the side, and the command."""
    fakes = "from unittest.mock import Mock\nlogging, DiffLlamaForCausalLM = Mock(), Mock()\n"
    (packages / "transformers.py").write_text(fakes)
    (packages / "torch.py").write_text(f"""
import os, subprocess, sys
set_num_threads = print
command = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(packages / "family")!r}, "w").write(f"{{os.getpid()}} {{command.pid}}")
""")
    return lambda: [int(pid) for pid in (packages / "family").read_text().split()]


def test_nothing_outlives_a_parent_that_was_killed(packages: Path, family: Callable[[], list[int]]) -> None:
    code = """
import time
from refdiff.bench.processes import child
from refdiff.bench.rows import BenchRow
from refdiff.bench.sides import BenchSettings
with child("transformers", BenchRow("load"), BenchSettings()):
    print("ready", flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**environment(1), "PYTHONPATH": str(packages)}
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
    finally:
        parent.kill()
        parent.communicate()
    assert all(map(_gone, family()))
