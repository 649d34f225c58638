"""The file of answers: read those of earlier runs, and append new ones."""

from __future__ import annotations

import array
import contextlib
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refdiff.cli.flags import UsageError
from refdiff.cli.prompts_file.reading import Prompt
from refdiff.cli.terminal import json_text
from refdiff.files import lock

SAME_ANSWER = frozenset({
    "command", "prompt", "prompt_flag", "file", "prompts_file", "output", "json", "no_stream", "quiet", "debug",
    "offline", "seed", "num_shards", "shard_index", "batch_size", "dask", "threads", "backend", "weights", "no_mmap",
})  # fmt: skip
"""The options that leave each answer as it is, up to rounding error. An answer's seed is compared by itself."""

_OPENING = b'{"index": '  # of every line
_SYNC_EVERY = 1.0  # seconds; a killed process loses nothing that was flushed, a power cut at most this much


class Answers:
    """The file of answers, and which prompts have one, in 32 bytes of memory each. Without a path, standard output.

    The file is unchanged until the first line is written. A new file without a line is removed after an error.

    Raises:
        UsageError: the file holds something else, or another run is writing to it.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._end: int | None = None
        self._synced = time.monotonic()
        self._rows = np.empty((0, 4), dtype=np.int64)  # index, line, where it starts, what it answers: by index
        if path is None:
            self._file: BinaryIO = sys.stdout.buffer
            return
        self._is_new = not os.path.lexists(path)
        self._file = open(path, "ab+")  # noqa: PTH123, SIM115, there is one way to open in this mode; see __exit__
        try:
            if not lock(self._file, wait=False):
                raise UsageError(f"{path}: another run is writing to it; wait for it or give another -o")
            self._read(path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._path is None:
            return
        try:
            with self._name_errors():
                self._file.flush()
                _sync(self._file)
        finally:
            is_empty = os.fstat(self._file.fileno()).st_size == 0
            with contextlib.suppress(OSError):  # it flushes once more
                self._file.close()
            if error is not None and self._is_new and is_empty:
                Path(self._path).unlink()

    @contextlib.contextmanager
    def _name_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = self._path
            raise

    def _read(self, path: str) -> None:
        found = array.array("q")
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, 1):
            where = f"{path} line {number}"
            if not line.endswith(b"\n"):  # the run was killed while it wrote this line
                if not (line.startswith(_OPENING) or _OPENING.startswith(line)):
                    raise UsageError(f"{where}: not a line that generate wrote; give another -o")
                self._end = end
                break
            if line.strip():
                index, text, seed, run = _parsed(line, where)
                found.extend((index, number, end, hash((text, seed, run))))
            end += len(line)
        rows = np.frombuffer(found, dtype=np.int64).reshape(-1, 4)
        self._rows = rows[np.argsort(rows[:, 0], kind="stable")]

    def has(self, prompt: Prompt, seed: int, run: str) -> bool:
        """Return whether a prompt has been answered with this seed; `run` is the digest of model and options.

        Raises:
            UsageError: the answer has another text, seed or digest.
        """
        first, last = np.searchsorted(self._rows[:, 0], [prompt.index, prompt.index + 1])
        for row in self._rows[first:last]:
            if row[3] != hash((prompt.text, seed, run)):
                self._refuse(row, prompt, seed, run)
        return bool(last > first)

    def _refuse(self, row: Any, prompt: Prompt, seed: int, run: str) -> None:
        self._file.seek(int(row[2]))
        where = f"{self._path} line {row[1]}"
        index, text, written, before = _parsed(self._file.readline(), where)
        if text != prompt.text:
            raise _not_there(where, index)
        if written != seed:
            raise UsageError(f"{where}: has seed {written}, this run would use {seed}; give the same -s or another -o")
        raise UsageError(f"{where}: was made with another {_different(before, run)}; give the same or another -o")

    def check_count(self, prompts: int) -> None:
        """Raise `UsageError` for an answer of a prompt after the last."""
        if len(self._rows) and self._rows[-1, 0] >= prompts:
            raise _not_there(f"{self._path} line {self._rows[-1, 1]}", self._rows[-1, 0])

    def cut(self) -> None:
        """Remove an incomplete last line."""
        if self._end is not None:
            self._file.truncate(self._end)
            self._end = None

    def write(self, row: dict[str, Any]) -> None:
        """Append a line and flush it; sync the file to the disk at most once a second."""
        line = json_text(row, allow_nan=False).encode() + b"\n"
        with self._name_errors():
            self.cut()
            self._file.write(line)
            self._file.flush()
            if self._path is not None and time.monotonic() - self._synced > _SYNC_EVERY:
                _sync(self._file)
                self._synced = time.monotonic()


def digest(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the names and hashes of the options that an answer depends on, without those that have their default."""
    compared = {name: value for name, value in sorted(options.items()) if name not in SAME_ANSWER}
    changed = {name: value for name, value in compared.items() if value != defaults.get(name)}
    return " ".join(f"{name}:{_hash(value)}" for name, value in changed.items())


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _different(before: str | None, run: str) -> str:
    """Return the options in which two runs differ, as flags."""
    if before is None or (before and ":" not in before):  # not by this version of refdiff
        return "model or option"
    names = sorted({pair.partition(":")[0] for pair in {*before.split()} ^ {*run.split()}})
    return ", ".join("-m" if name == "model" else f"--{name.replace('_', '-')}" for name in names)


def _parsed(line: bytes, where: str) -> tuple[int, str, Any, Any]:
    """Return the index, prompt, seed and run of a line."""
    try:
        row = json.loads(line)
        index, seed = row["index"], row["seed"]
        text = (
            row["prompt"] if "messages" not in row else json.dumps(row["messages"], ensure_ascii=False, sort_keys=True)
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{where}: not a line that generate wrote; give another -o") from None
    if not isinstance(index, int) or not 0 <= index < 2**63 or not isinstance(text, str):
        raise _not_there(where, index)
    run = row.get("run")
    return index, text, seed if isinstance(seed, int) else repr(seed), run if isinstance(run, str) else None


def _not_there(where: str, index: object) -> UsageError:
    return UsageError(f"{where}: answers a prompt that is not at index {index} of the prompts; give another -o")


def _sync(file: BinaryIO) -> None:
    """Sync a regular file to the disk."""
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        os.fsync(file.fileno())
