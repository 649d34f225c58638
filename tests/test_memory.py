"""What the system says of memory, and where it says nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from refdiff.memory import peak_memory, physical_memory

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


def test_a_container_has_its_limit(tmp_path: Path) -> None:
    machine = physical_memory(tmp_path)
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("max\n")
        assert physical_memory(tmp_path) == machine
        (tmp_path / file).write_text("1000000\n")
        assert physical_memory(tmp_path) == 1_000_000
        (tmp_path / file).unlink()
