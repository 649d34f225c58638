"""Memory of a process, and the device, with NumPy in CuPy's place."""

from __future__ import annotations

import importlib
import itertools
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
from refdiff.bench.device import Gpu, UnavailableError, own_memory, peak_memory
from refdiff.bench.peers import TransformersSide, torch_device
from refdiff.bench.refdiff_side import RefdiffSide
from refdiff.bench.side import Settings
from tests.backends.cupy.test_model import on_the_device


def test_peak_memory_counts_what_was_held() -> None:
    before = peak_memory()
    assert before is not None
    held = bytearray(before + 50_000_000)
    held[::4096] = b"x" * len(held[::4096])
    del held
    after = peak_memory()
    assert after is not None
    assert after >= before + 50_000_000


def test_peak_memory_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = peak_memory()
    monkeypatch.setattr(Path, "exists", lambda self: False)
    other = peak_memory()
    assert expected is not None
    assert other is not None
    assert other >= expected * 0.9
    assert own_memory() is None
    monkeypatch.setitem(__import__("sys").modules, "resource", None)
    assert peak_memory() is None


HELD = """
import mmap, sys
from refdiff.bench.device import own_memory
before = own_memory()
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    assert sum(mapped[::4096]) > 0
    held = bytearray(b"y" * 40_000_000)
    print(own_memory() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says")
def test_own_memory_counts_what_is_held_and_no_mapped_file(tmp_path: Path) -> None:
    """In a process of its own: what tests before it left goes at any time."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 30_000_000)
    said = subprocess.run([sys.executable, "-c", HELD, path], capture_output=True, text=True, check=True)
    assert 39_000_000 <= int(said.stdout) <= 60_000_000


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


def test_what_is_held_is_what_came_since_the_start(card: Card) -> None:
    there = Gpu.of_cupy()
    assert there.held() == 0
    card.used = 720
    assert there.held() == 420
    there.wait()
    assert card.waits == 1


@pytest.mark.parametrize("side", [RefdiffSide, CeilingSide])
def test_a_side_waits_for_the_device_and_counts_its_memory(card: Card, side: Any) -> None:
    made = side(Settings(backend="cupy"))
    assert made.prepare() == {}
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
    found = machine.describe(2, "cupy")
    assert found["device"] == "A Card"
    assert found["versions"]["cuda"] == "12.8"
    line = machine.one_line(found)
    assert line.startswith("A Card; ")
    assert "CuPy 14.2.0, CUDA 12.8" in line
    assert "device" not in machine.describe(2)


def test_without_a_device_a_side_says_what_backends_say() -> None:
    try:
        importlib.import_module("cupy")
    except ImportError:
        with pytest.raises(UnavailableError, match=r'backend "cupy" is not available .* use backend "numpy"'):
            Gpu.of_cupy()


def torch(available: bool) -> Any:
    waits: list[int] = []
    cuda = SimpleNamespace(
        is_available=lambda: available, synchronize=lambda: waits.append(1), mem_get_info=lambda: (400, 1000)
    )
    return SimpleNamespace(cuda=cuda, waits=waits, set_num_threads=lambda n: None)


def test_torch_must_see_the_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Gpu.of_torch(torch(True))
    there.wait()
    assert there.held() == 0
    modules = {"torch": torch(False), "transformers": SimpleNamespace()}
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    with pytest.raises(UnavailableError, match="needs a torch that sees the CUDA device"):
        TransformersSide(Settings(backend="cupy")).prepare()
    assert [torch_device(Settings(backend=name)) for name in ("numpy", "cupy")] == ["cpu", "cuda"]
