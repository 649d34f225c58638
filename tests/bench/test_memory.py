"""How much memory this process has held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from refdiff.bench.memory import own_memory, peak_memory


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
from refdiff.bench.memory import own_memory
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
