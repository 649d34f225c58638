"""The machine in words, its ceilings, memory of a process, and the device, with NumPy in CuPy's place."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.bench import report
from refdiff.bench.rows import BenchRow
from refdiff.bench.sides import DEVICE_REPEATS, BenchSettings, Ceilings, RefdiffSide


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


class Card:
    """A device with 1000 bytes, of which others use 300; what waits is counted."""

    def __init__(self) -> None:
        self.used, self.waits = 300, 0
        self.copied: list[int] = []

    def synchronize(self) -> None:
        self.waits += 1


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    there = Card()

    def copyto(target: Any, source: Any) -> None:
        there.copied.append(source.nbytes)
        target[...] = source

    runtime = SimpleNamespace(
        memGetInfo=lambda: (1000 - there.used, 1000), getDevice=lambda: 3, runtimeGetVersion=lambda: 12080,
        getDeviceProperties=lambda number: {"name": b"A Card"} if number == 3 else {},
    )  # fmt: skip
    fake = SimpleNamespace(
        __version__="14.2.0", zeros=np.zeros, empty=np.empty, matmul=np.matmul, copyto=copyto, sum=np.sum, ones=np.ones,
        random=SimpleNamespace(standard_normal=lambda shape, dtype: np.ones(shape, dtype)),
        cuda=SimpleNamespace(get_current_stream=lambda: there, runtime=runtime),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", np)
    return there


@pytest.mark.parametrize("side", [RefdiffSide, Ceilings])
def test_a_side_waits_for_the_device_and_counts_its_memory(card: Card, side: Any) -> None:
    made = side(BenchSettings(backend="cupy"))
    made.prepare()
    assert made.peak() == 0
    card.used = 500
    assert made.peak() == 200
    made.time_call(lambda: None)
    assert card.waits == 2  # before the clock starts, and before it stops
    on_cpu = side(BenchSettings())
    on_cpu.prepare()
    on_cpu.time_call(lambda: None)
    assert card.waits == 2
    assert on_cpu.peak() > 10_000_000
    found = report.describe_machine(2, "cupy")
    assert (found["device"], found["versions"]["cupy"], found["versions"]["cuda"]) == ("A Card", "14.2.0", "12.8")


def test_ceilings_count_copies_both_ways_and_products_in_the_dtype(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[Any] = []

    class Device:
        def product(self, a: Any, b: Any) -> None:
            products.append((a.dtype.name, b.dtype.name))

    monkeypatch.setattr("refdiff.backends.cupy.device.Device", Device)
    for dtype, launched in (("float32", []), ("bfloat16", [("bfloat16", "bfloat16")] * DEVICE_REPEATS)):
        side = Ceilings(BenchSettings(dtype=dtype, backend="cupy"))
        side.prepare()
        ticks = itertools.chain([0.0, 4.0, 10.0, 12.0], itertools.count(20.0, 5.0))
        side.clock = lambda ticks=ticks: next(ticks)
        assert side.copy(size=700, times=3)() == {"rate": 3 * 2 * 700 / 2.0}
        ticks = itertools.chain([0.0, 4.0, 10.0, 18.0], itertools.count(20.0, 5.0))
        side.clock = lambda ticks=ticks: next(ticks)
        assert side.matmul(size=7)() == {"rate": 2 * 7**3 / 4.0}
        assert products == launched
    assert card.copied == [700] * 3 * 2 * DEVICE_REPEATS
    monkeypatch.setattr(Ceilings, "matmul", lambda self: lambda: {"rate": 7.0})
    assert list(itertools.islice(side.measure(BenchRow("prefill", 4)), 2)) == [{}, {"kind": "matmul", "rate": 7.0}]
