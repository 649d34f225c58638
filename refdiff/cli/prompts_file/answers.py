"""The file of answers: read those of earlier runs, and append new ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from refdiff.cli.flags import UsageError
from refdiff.cli.prompts_file.reading import Prompt
from refdiff.cli.terminal import json_text
from refdiff.files import lock

SAME_ANSWER = frozenset({
    "command", "prompt", "prompt_flag", "file", "prompts_file", "output", "json", "no_stream", "quiet", "debug",
    "offline", "seed", "batch_size", "threads", "backend", "weights", "no_mmap",
})  # fmt: skip
"""The options that leave each answer as it is, up to rounding error. An answer's seed is compared by itself."""

_OPENING = b'{"index": '  # of every line


@contextlib.contextmanager
def open_answers(path: str | None) -> Iterator[Answers]:
    """Open the file of answers, or standard output without a path; the file is unchanged until a line is written.

    Raises:
        UsageError: the file holds something else, or another run is writing to it.
    """
    if path is None:
        yield Answers("standard output", sys.stdout.buffer)
        return
    is_new = not Path(path).exists()
    file = open(path, "ab+")  # noqa: PTH123, SIM115, there is one way to open in this mode
    try:
        if not lock(file, wait=False):
            raise UsageError(f"{path}: another run is writing to it; wait for it or give another -o")
        answers = Answers(path, file)
        answers._read()
        yield answers
    finally:
        with contextlib.suppress(OSError):  # it flushes a line once more that could not be written
            file.close()
        with contextlib.suppress(OSError):
            if is_new and Path(path).stat().st_size == 0:
                Path(path).unlink()


class Answers:
    """The file of answers, and which prompts have one."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name, self._file = name, file
        self._end: int | None = None  # where the incomplete line of a killed run begins
        self._done: dict[int, tuple[int, str, Any, str | None]] = {}
        """The line, text, seed and run of the answer to a prompt, by its index."""

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, 1):
            where = f"{self._name} line {number}"
            if not line.endswith(b"\n"):  # the run was killed while it wrote this line
                if not (line.startswith(_OPENING) or _OPENING.startswith(line)):
                    raise UsageError(f"{where}: not a line that generate wrote; give another -o")
                self._end = end
                break
            if line.strip():
                index, *answer = _parsed(line, where)
                self._done[index] = (number, *answer)
            end += len(line)

    def has(self, prompt: Prompt, seed: int, run: str) -> bool:
        """Return whether a prompt has been answered with this seed; `run` is the digest of model and options.

        Raises:
            UsageError: the answer has another text, seed or digest.
        """
        if prompt.index not in self._done:
            return False
        number, text, seed_before, run_before = self._done[prompt.index]
        where = f"{self._name} line {number}"
        if text != prompt.text:
            raise _other_prompts(where, prompt.index)
        if seed_before != seed:
            raise UsageError(
                f"{where}: has seed {seed_before}, this run would use {seed}; give the same -s or another -o"
            )
        if run_before != run:
            different = _different(run_before, run)
            raise UsageError(f"{where}: was made with another {different}; give the same or another -o")
        return True

    def check_count(self, prompts: int) -> None:
        """Raise `UsageError` for an answer of a prompt after the last."""
        if (last := max(self._done, default=0)) >= prompts:
            raise _other_prompts(f"{self._name} line {self._done[last][0]}", last)

    def write(self, row: dict[str, Any]) -> None:
        """Append a line and flush it: a process that is killed later does not lose it."""
        line = json_text(row, allow_nan=False).encode() + b"\n"
        try:
            if self._end is not None:
                self._file.truncate(self._end)
                self._end = None
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            error.filename = self._name
            raise


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


def _parsed(line: bytes, where: str) -> tuple[int, str, Any, str | None]:
    """Return the index, prompt, seed and run of a line."""
    try:
        row = json.loads(line)
        index, seed, run = row["index"], row["seed"], row.get("run")
        text = (
            row["prompt"] if "messages" not in row else json.dumps(row["messages"], ensure_ascii=False, sort_keys=True)
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{where}: not a line that generate wrote; give another -o") from None
    if not isinstance(index, int) or index < 0 or not isinstance(text, str):
        raise _other_prompts(where, index)
    return index, text, seed if isinstance(seed, int) else repr(seed), run if isinstance(run, str) else None


def _other_prompts(where: str, index: object) -> UsageError:
    return UsageError(f"{where}: answers a prompt that is not at index {index} of the prompts; give another -o")
