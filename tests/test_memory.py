"""What the system says of memory, and where it says nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from refdiff.memory import available_memory, peak_memory, physical_memory

HELD = """
from refdiff.memory import peak_memory
most = peak_memory()
held = bytearray(b"y" * most)
del held
print(peak_memory() - most)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says")
def test_peak_memory_counts_memory_given_back() -> None:
    """In a process of its own: what tests before it left goes at any time."""
    said = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    assert int(said.stdout) >= 5_000_000


def test_peak_memory_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = peak_memory()
    monkeypatch.setattr(Path, "exists", lambda self: False)
    other = peak_memory()
    assert expected is not None
    assert other is not None
    assert other >= expected * 0.9
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() is None


def test_available_memory_is_the_least_of_what_the_system_reports(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    assert available_memory(info, tmp_path) is None
    info.write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n\nSwapFree: 1000 kB\n")
    assert available_memory(info, tmp_path) == 6000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(info, tmp_path) == 6000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    assert available_memory(info, tmp_path) == 1_000_000
    assert physical_memory(tmp_path) == 1_000_000


@pytest.mark.parametrize(
    ("limit", "usage", "cached"),
    [
        ("memory.max", "memory.current", "inactive_file 200000"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "inactive_file 7\ntotal_inactive_file 200000"),
    ],
)
def test_memory_that_a_container_uses_is_not_available(tmp_path: Path, limit: str, usage: str, cached: str) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("1000000\n")
    (tmp_path / usage).write_text("700000\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 300_000
    (tmp_path / limit).with_name("memory.stat").write_text(f"anon 500000\n{cached}\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 500_000
    assert physical_memory(tmp_path) == 1_000_000
