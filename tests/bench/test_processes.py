"""Processes that answer requests, and never outlive their parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from refdiff.bench import processes
from refdiff.bench.machine import UnavailableError
from refdiff.bench.processes import Child, ChildError, answer, environment, first_output
from refdiff.bench.side import Settings

from .fakes import FakeSide


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


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


def test_a_process_is_asked_several_times_and_ended() -> None:
    with Child("ceilings", Settings(threads=1, least=0)) as child:
        assert child.request("gemv", rows=64, columns=64)["rate"] > 0
        assert child.request("sgemm", size=64)["rate"] > 0
        with pytest.raises(ChildError, match="ceilings: AttributeError: 'CeilingSide' object has no attribute 'start'"):
            child.request("start")
        assert child.request("peak")["bytes"] > 10_000_000, "an error does not end it"
        pid = child.process.pid
        assert _alive(pid)
        assert os.getsid(pid) == pid, "Ctrl-C in the terminal would reach it"
    assert _gone(pid)
    child.close()  # again does no harm


def test_an_error_in_the_block_ends_it_too() -> None:
    with pytest.raises(KeyboardInterrupt), Child("ceilings", Settings()) as child:
        pid = child.process.pid
        raise KeyboardInterrupt
    assert _gone(pid)


def test_a_process_that_is_killed_is_reported() -> None:
    with Child("ceilings", Settings()) as child:
        os.kill(child.process.pid, signal.SIGKILL)
        with pytest.raises(ChildError, match=r"ceilings: its process was killed by signal 9 \(out of memory\?\)"):
            child.request("peak")
        with pytest.raises(ChildError, match="killed by signal 9"):
            child.request("peak")


def test_a_process_that_fails_at_its_start_is_reported() -> None:
    with pytest.raises(ChildError, match="other: its process was ended with status 1: KeyError: 'other'"):
        Child("other", Settings())


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that children find packages in first."""
    (tmp_path / "refdiff").symlink_to(Path(processes.__file__).parents[1])
    monkeypatch.setattr(processes, "environment", lambda threads: {**environment(threads), "PYTHONPATH": str(tmp_path)})
    return tmp_path


def test_what_is_not_installed_is_said(packages: Path) -> None:
    (packages / "onnx.py").write_text("raise ImportError('not here')\n")
    with pytest.raises(UnavailableError, match=r"--against onnxruntime needs .*: not here"):
        Child("onnxruntime", Settings())


def test_no_process_outlives_a_parent_that_was_killed() -> None:
    code = """
import sys, time
from refdiff.bench.processes import Child
from refdiff.bench.side import Settings
child = Child("ceilings", Settings(least=0))
print(child.process.pid, flush=True)
child.request("gemv", rows=1, columns=1)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment(1))
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
    finally:
        parent.kill()
        parent.communicate()
    assert _gone(pid)


def test_what_libraries_print_is_no_answer(packages: Path) -> None:
    (packages / "onnx.py").write_text("print('hello', flush=True)\nimport os\nos.write(1, b'there')\n")
    (packages / "onnxruntime.py").write_text("")
    with Child("onnxruntime", Settings()) as child:
        assert child.request("prepare") == {}


def test_first_output_is_timed() -> None:
    code = "import sys, time; time.sleep(0.2); print('a', flush=True); time.sleep(0.5); print('あ')"
    seconds, text = first_output([sys.executable, "-X", "utf8", "-c", code], 1)
    assert text == "a\nあ\n"
    assert seconds >= 0.2
    assert first_output([sys.executable, "-c", "print(1)"], 1)[1] == "1\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('broken')", "ended with status 1: broken"),
        ("pass", "ended with status 0: no output"),
        ("print(1); raise SystemExit(3)", "ended with status 3: no output"),
    ],
)
def test_a_command_that_fails_is_reported(code: str, message: str) -> None:
    with pytest.raises(ChildError, match=message):
        first_output([sys.executable, "-c", code], 1)


@pytest.mark.parametrize(
    ("line", "kind", "part"),
    [
        ('{"do": "nothing"}', "AttributeError", "no attribute 'nothing'"),
        ('{"do": "prefill"}', "TypeError", "size"),
        ('{"do": "peak"}', "RuntimeError", "first second"),
        ("{", "JSONDecodeError", "line 1"),
    ],
)
def test_errors_are_answers_of_one_line(line: str, kind: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    side = FakeSide()
    monkeypatch.setattr(side, "peak", Mock(side_effect=RuntimeError("first\n  second")))
    found = json.loads(answer(side, line))
    assert found["kind"] == kind
    assert part in found["error"]
