"""One process at a time in a folder; files come and go with the lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refdiff.training import lock

fcntl = pytest.importorskip("fcntl")


def test_a_folder_is_held_once(tmp_path: Path) -> None:
    why = "another process trains in this folder: wait until it ends, or name another folder"
    with lock.held(tmp_path):
        for _ in range(2):  # the first took nothing away
            with pytest.raises(RuntimeError, match=why), lock.held(tmp_path):
                pass
    with lock.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_is_taken_away(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text"), lock.held(tmp_path / "one"):
        raise ValueError("no text")
    with lock.held(tmp_path / "two"):
        (tmp_path / "two" / "log.jsonl").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_a_file_left_by_a_killed_process_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / lock.NAME).touch()
    with lock.held(tmp_path):
        pass


def test_a_lock_on_a_file_that_was_taken_away_is_none(tmp_path: Path) -> None:
    """Opened before the one that held it ended, locked after: another may hold the file that has its name now."""
    descriptor = os.open(tmp_path / lock.NAME, os.O_RDWR | os.O_CREAT)
    (tmp_path / lock.NAME).unlink()
    try:
        assert not lock._locked(descriptor, tmp_path / lock.NAME)
        (tmp_path / lock.NAME).touch()
        assert not lock._locked(descriptor, tmp_path / lock.NAME)
    finally:
        os.close(descriptor)


def test_where_there_are_no_locks_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock.held(tmp_path):
        pass
    monkeypatch.setattr(lock, "fcntl", None)
    with lock.held(tmp_path), lock.held(tmp_path):
        pass
