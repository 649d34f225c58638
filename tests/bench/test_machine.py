"""The machine in words."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from refdiff.bench import machine

from .fakes import report


def test_what_is_said_of_this_one() -> None:
    found = machine.describe(3)
    assert found["threads"] == 3
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["versions"]["python"] == platform.python_version()
    assert {"refdiff", "numpy"} <= set(found["versions"])
    assert found["processor"]
    assert found["memory_bytes"] > 100_000_000
    text = json.dumps(found)
    assert str(Path.home()) not in text
    assert platform.node() not in text.replace("Linux", "")
    assert os.sep + "lib" not in text


def test_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Some   CPU @ 2.50GHz\nflags : x\nmodel name : Other\n")
    assert machine.processor(info) == "Some CPU @ 2.50GHz"
    info.write_text("processor : 0\n")
    assert machine.processor(info) == (platform.processor() or platform.machine())
    assert machine.processor(tmp_path / "none") == (platform.processor() or platform.machine())


def test_cores_are_the_machines_whatever_blas_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine.describe(1)["cores"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.describe(1)["cores"] == found
    monkeypatch.setenv("OMP_NUM_THREADS", "100")
    assert machine.describe(1)["cores"] == found


def test_packages_that_are_not_installed_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no-such-package-anywhere"))
    assert set(machine.describe(1)["versions"]) == {"refdiff", "python", "numpy"}


def test_commit(tmp_path: Path) -> None:
    def git(*command: str) -> None:
        named = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
        subprocess.run(["git", *named, "-C", str(tmp_path), *command], check=True, capture_output=True)

    package = tmp_path / "package"
    package.mkdir()
    source = package / "__init__.py"
    source.write_text("")
    assert machine.commit(package) is None
    git("init")
    assert machine.commit(package) is None, "the checkout is another project's"
    git("add", ".")
    git("commit", "-m", "why")
    found = machine.commit(package)
    assert found is not None
    assert re.fullmatch("[0-9a-f]{7}", found)
    (tmp_path / "beside").write_text("")
    assert machine.commit(package) == found
    source.write_text("x = 1")
    assert machine.commit(package) == f"{found} with changes"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit() is None


def test_memory_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert machine.memory() is None


def test_one_line() -> None:
    one = report()["machine"]
    assert machine.one_line(one) == (
        "A Processor, 2 cores, 25 GB, Linux x86_64; 1 thread; openblas 0.3; refdiff 1.2.3, NumPy 2.4.6"
    )
    assert machine.one_line({**one, "memory_bytes": None, "cores": 1, "threads": 4}) == (
        "A Processor, 1 core, Linux x86_64; 4 threads; openblas 0.3; refdiff 1.2.3, NumPy 2.4.6"
    )
