"""The machine in words, its ceilings, memory of a process, and the device, with NumPy in CuPy's place."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.bench import report
from refdiff.bench.sides import BenchSettings, Ceilings


def test_description_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is installed alone, and whatever BLAS is told of threads."""
    monkeypatch.setattr(report, "PACKAGES", ("numpy", "no-such-package-anywhere"))
    found = report.describe_machine(3)
    assert found["threads"] == 3
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["versions"]["python"] == platform.python_version()
    assert set(found["versions"]) == {"refdiff", "python", "numpy"}
    assert found["processor"]
    assert found["memory_bytes"] > 100_000_000
    text = json.dumps(found)
    assert str(Path.home()) not in text
    assert platform.node() not in text.replace("Linux", "")
    assert os.sep + "lib" not in text
    for threads in ("1", "100"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert report.describe_machine(1)["cores"] == found["cores"]


def test_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Some   CPU @ 2.50GHz\nflags : x\nmodel name : Other\n")
    assert report.processor(info) == "Some CPU @ 2.50GHz"
    info.write_text("processor : 0\n")
    for file in (info, tmp_path / "none"):
        assert report.processor(file) == (platform.processor() or platform.machine())


def test_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*command: str) -> None:
        named = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
        subprocess.run(["git", *named, "-C", str(tmp_path), *command], check=True, capture_output=True)

    package = tmp_path / "package"
    package.mkdir()
    source = package / "__init__.py"
    source.write_text("")
    assert report.commit(package) is None
    git("init")
    assert report.commit(package) is None, "the checkout is another project's"
    git("add", ".")
    git("commit", "-m", "why")
    found = report.commit(package)
    assert found is not None
    assert re.fullmatch("[0-9a-f]{7}", found)
    (tmp_path / "beside").write_text("")
    assert report.commit(package) == found
    source.write_text("x = 1")
    assert report.commit(package) == f"{found} with changes"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report.commit(package) is None, "there is no git"


def test_a_ceiling_is_what_is_kept_up_for_a_while_after_a_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of 2 s for 5 s or more are three, beside the first, which takes 90 s; a sum takes 0.5 s."""
    side = Ceilings(BenchSettings(min_seconds=5.0, pause=0))
    now = [0.0]
    passes: list[float] = []

    def take(seconds: float) -> None:
        passes.append(seconds)
        now[0] += seconds

    def add(numbers: Any, *, axis: None) -> None:
        assert numbers.nbytes == 3 * 6 * 4
        take(0.5)

    monkeypatch.setattr(np, "matmul", lambda *_, out: take(2.0 if passes else 90.0))
    monkeypatch.setattr(np, "add", SimpleNamespace(reduce=add))
    side.clock = lambda: now[0]
    assert side.gemv(rows=3, columns=6)() == {"rate": 3 * 6 * 4 / 2.0, "read": 3 * 6 * 4 / 0.5}
    assert passes == [90.0, 2.0, 2.0, 2.0, *[0.5] * 11]
    passes.clear()
    assert side.sgemm(size=7)() == {"rate": 2 * 7**3 / 2.0}
    assert passes == [90.0, 2.0, 2.0, 2.0]
