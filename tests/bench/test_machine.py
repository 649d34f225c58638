"""The machine in words, memory of a process, and the device, with NumPy in CuPy's place."""

from __future__ import annotations

import importlib
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

from refdiff.arrays import to_numpy
from refdiff.bench import machine
from refdiff.bench.ceilings import ON_A_DEVICE, CeilingSide
from refdiff.bench.machine import Gpu, UnavailableError, own_memory, peak_memory
from refdiff.bench.peers import TransformersSide, torch_device
from refdiff.bench.refdiff_side import RefdiffSide
from refdiff.bench.side import Settings
from tests.backends.cupy.test_model import on_the_device

from .fakes import report


def test_what_is_said_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is installed alone, and whatever BLAS is told of threads."""
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no-such-package-anywhere"))
    found = machine.describe(3)
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
        assert machine.describe(1)["cores"] == found["cores"]


def test_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Some   CPU @ 2.50GHz\nflags : x\nmodel name : Other\n")
    assert machine.processor(info) == "Some CPU @ 2.50GHz"
    info.write_text("processor : 0\n")
    for file in (info, tmp_path / "none"):
        assert machine.processor(file) == (platform.processor() or platform.machine())


def test_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit(package) is None, "there is no git"


def test_memory_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert machine.describe(1)["memory_bytes"] is None


def test_one_line() -> None:
    one = report()["machine"]
    assert machine.one_line(one) == (
        "A Processor, 2 cores, 25 GB, Linux x86_64; 1 thread; openblas 0.3; refdiff 1.2.3, NumPy 2.4.6"
    )
    assert machine.one_line({**one, "memory_bytes": None, "cores": 1, "threads": 4}) == (
        "A Processor, 1 core, Linux x86_64; 4 threads; openblas 0.3; refdiff 1.2.3, NumPy 2.4.6"
    )


HELD = """
import mmap, sys
from refdiff.bench.machine import own_memory, peak_memory
before, most = own_memory(), peak_memory()
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    assert sum(mapped[::4096]) > 0
    held = bytearray(b"y" * 40_000_000)
    print(own_memory() - before)
    held += bytearray(b"y" * most)
    del held
    print(peak_memory() - most)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says")
def test_memory_counts_what_is_held_and_no_mapped_file(tmp_path: Path) -> None:
    """In a process of its own: what tests before it left goes at any time."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 30_000_000)
    said = subprocess.run([sys.executable, "-c", HELD, path], capture_output=True, text=True, check=True)
    own, peak = map(int, said.stdout.split())
    assert 39_000_000 <= own <= 60_000_000
    assert peak >= 40_000_000, "what was given back counts too"


def test_peak_memory_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = peak_memory()
    monkeypatch.setattr(Path, "exists", lambda self: False)
    other = peak_memory()
    assert expected is not None
    assert other is not None
    assert other >= expected * 0.9
    assert own_memory() is None
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() is None


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
    random = SimpleNamespace(
        standard_normal=lambda shape, dtype: np.random.default_rng(0).standard_normal(shape, dtype)
    )  # fmt: skip
    fake = SimpleNamespace(
        __version__="14.2.0", sum=np.sum, ones=np.ones, zeros=np.zeros, empty=np.empty, matmul=np.matmul, copyto=copyto,
        random=random, cuda=SimpleNamespace(get_current_stream=lambda: there, runtime=runtime),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", np)
    return there


@pytest.mark.parametrize("side", [RefdiffSide, CeilingSide])
def test_a_side_waits_for_the_device_and_counts_its_memory(card: Card, side: Any) -> None:
    made = side(Settings(backend="cupy"))
    assert made.prepare() == {}
    assert made.peak() == {"bytes": 0}
    card.used = 500
    assert made.peak() == {"bytes": 200}
    made.timed(lambda: None)
    assert card.waits == 2  # before the clock starts, and before it stops
    on_cpu = side(Settings())
    on_cpu.prepare()
    on_cpu.sync()
    assert card.waits == 2
    assert "own_bytes" in on_cpu.peak()


def test_ceilings_count_copies_both_ways_and_products_in_the_dtype(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[Any] = []

    class Device:
        def product(self, a: Any, b: Any) -> None:
            products.append((a.dtype.name, b.dtype.name))

    monkeypatch.setattr("refdiff.backends.cupy.device.Device", Device)
    for dtype, launched in (("float32", []), ("bfloat16", [("bfloat16", "bfloat16")] * ON_A_DEVICE)):
        side = CeilingSide(Settings(dtype=dtype, backend="cupy"))
        side.prepare()
        ticks = itertools.chain([0.0, 4.0, 10.0, 12.0], itertools.count(20.0, 5.0))
        side.clock = lambda ticks=ticks: next(ticks)
        assert side.copy(size=700, times=3) == {"rate": 3 * 2 * 700 / 2.0}
        ticks = itertools.chain([0.0, 4.0, 10.0, 18.0], itertools.count(20.0, 5.0))
        side.clock = lambda ticks=ticks: next(ticks)
        assert side.matmul(size=7) == {"rate": 2 * 7**3 / 4.0}
        assert products == launched
    assert card.copied == [700] * 3 * 2 * ON_A_DEVICE


def test_on_a_device_tokens_are_chosen_there(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(str(tiny_checkpoint), steps=3)
    here, side = RefdiffSide(settings), RefdiffSide(settings)
    here.load()
    expected = here.decode(9, 2)["tokens"]
    side.load()
    side.gpu = Gpu(lambda: None, lambda: (0, 0))
    device = on_the_device(side.model)
    fetched: list[tuple[int, ...]] = []

    def watched(x: Any) -> Any:
        fetched.append(x.shape)
        return to_numpy(x)

    monkeypatch.setattr("refdiff.bench.refdiff_side.to_numpy", watched)
    monkeypatch.setattr("refdiff.generation.context.to_numpy", None)
    assert side.decode(9, 2)["tokens"] == expected
    assert fetched == [(2,)] * 4
    assert device.launched.count("choose") == 4, "as generate chooses"


def test_a_machine_with_a_card_is_named_by_it(card: Card) -> None:
    line = machine.one_line(machine.describe(2, "cupy"))
    assert line.startswith("A Card; ")
    assert "CuPy 14.2.0, CUDA 12.8" in line
    assert "device" not in machine.describe(2)


def test_without_a_device_a_side_says_what_backends_say() -> None:
    try:
        importlib.import_module("cupy")
    except ImportError:
        with pytest.raises(UnavailableError, match=r'backend "cupy" is not available .* use backend "numpy"'):
            Gpu.from_cupy()


def test_torch_must_see_the_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: False)
    modules = {"torch": SimpleNamespace(cuda=cuda), "transformers": SimpleNamespace()}
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    with pytest.raises(UnavailableError, match="needs a torch that sees the CUDA device"):
        TransformersSide(Settings(backend="cupy")).prepare()
    assert [torch_device(Settings(backend=name)) for name in ("numpy", "cupy")] == ["cpu", "cuda"]
