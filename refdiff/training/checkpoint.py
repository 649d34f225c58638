"""A training run on disk: checkpoints that are ordinary model folders, written whole or not at all.

    OUT/corpus/            tokens and tokenizer, see data.py
    OUT/step-000400/       config.json, model.safetensors, tokenizer.json: what transformers and refdiff load;
                           optimizer.safetensors and training.json: what going on needs beside that
    OUT/log.jsonl          one line for each record

A checkpoint is written under another name and renamed when all of it is on the disk, so that a folder named step-… is
whole. The one before it is kept: the last is known to be good when its next step has been made, that one is by now.
One process at a time trains in a folder: two would mix their logs and sweep up each other's files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from refdiff.browser import require
from refdiff.errors import CheckpointError
from refdiff.files import read_json, write_atomically, write_json
from refdiff.model.commit import sync_folder
from refdiff.model.weights.safetensors_file import write_safetensors

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: there nothing is locked
    fcntl = None

KEPT = 2
"""How many checkpoints stay on the disk, unless the run says otherwise."""

_STEP = re.compile(r"step-(\d{6,})")
_STAGING = ".step-"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
LOCK = ".refdiff-train.lock"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes out of a folder, made if needed; at the end it is taken away if nothing else is in it.

    The lock is the system's: it ends with the process, however that ends, and a lock file that is left locks nothing.

    Raises:
        RuntimeError: another process holds it.
        OSError: the folder or the file in it cannot be made.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _locks(descriptor, out / LOCK):
            raise RuntimeError(
                f"{out}: another process trains in this folder: wait until it ends, or name another folder"
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (out / LOCK).unlink()
    finally:
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # not empty
                out.rmdir()


def _locks(descriptor: int, path: Path) -> bool:
    """Lock an open file, unless another process has, or has just taken the file away."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def save(
    out: Path, step: int, model: Any, state: dict[str, Any], about: dict[str, Any], tokenizer: Path, keep: int = KEPT
) -> Path:
    """Write the checkpoint of a step, delete all but the last `keep`, and return its folder.

    Raises:
        OSError: the disk is full or not writable; the checkpoints that were there still are.
    """
    staging, folder = out / f"{_STAGING}{step:06d}", out / name(step)
    replaced = out / f"{_STAGING}{step:06d}-before"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        model.save_pretrained(staging)
        for file in TOKENIZER:
            shutil.copyfile(tokenizer / file, staging / file)
        write_safetensors(staging / "optimizer.safetensors", state, model.dtype)
        describe(staging, step, about)
        if folder.exists():  # of the same step, saved again
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        staging.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        then = "free some space, then start again"
        if checkpoints(out):
            then = "earlier ones are unharmed; free some space, then continue with --resume"
        what = f"cannot write the checkpoint of step {step}: {error.strerror or error}; {then}"
        raise OSError(error.errno, what, str(out)) from error
    sync_folder(out)
    for _, old in checkpoints(out)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def name(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:06d}"


def describe(folder: Path, step: int, about: dict[str, Any]) -> None:
    """Write training.json: the step, and what going on needs to be told."""
    write_json(folder / "training.json", {**about, "step": step})


def describe_anew(folder: Path, step: int, about: dict[str, Any]) -> None:
    """Write training.json of a checkpoint that is there.

    Raises:
        OSError: the disk is full or not writable; the file is as it was.
    """
    with _advised("cannot write the settings that are to change", folder / "training.json"):
        describe(folder, step, about)


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint that cannot be gone on from, so that it is none; return where it is now."""
    aside = folder.with_name(f"{folder.name}-unusable")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def checkpoints(out: Path) -> list[tuple[int, Path]]:
    """List (step, folder) of all checkpoints, the last one last."""
    found = [(int(match[1]), path) for path in out.glob("step-*") if (match := _STEP.fullmatch(path.name))]
    return sorted(found)


def latest(out: Path) -> tuple[Path, dict[str, Any]]:
    """Return the last checkpoint's folder and training.json, and sweep up what a killed run left half-written.

    Raises:
        CheckpointError: there is none, or that file is broken or another step's.
    """
    found = checkpoints(out)
    if not found:
        raise CheckpointError(
            f"{out}: no checkpoint to resume (no folder step-…); train without --resume in a new folder"
        )
    for path in out.glob(f"{_STAGING}*"):
        shutil.rmtree(path, ignore_errors=True)
    step, folder = found[-1]
    about = read_json(folder / "training.json")
    if about.get("step") != step:
        raise broken(folder / "training.json", f"step is {about.get('step')!r}")
    return folder, about


def broken(file: Path, why: object) -> CheckpointError:
    """What to say of a checkpoint's file that has not in it what belongs there."""
    do = f"delete {file.parent} to resume the one before, or train from the beginning"
    return CheckpointError(f"{file}: not what this version writes: {why}; {do}")


def optimizer_state(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays that the optimizer had.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    require("safetensors", "resuming a run")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / "optimizer.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; delete {folder} to resume the one before") from None


def log(out: Path, record: dict[str, Any]) -> None:
    """Add a line to the log.

    Raises:
        OSError: the disk is full or not writable; the checkpoints are unharmed.
    """
    path = out / "log.jsonl"
    with _advised(f"cannot write the record of step {record['step']}", path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the records of a log.jsonl, or of the one in a run's folder; a last line that was cut off is left out.

    Raises:
        ValueError: it is not a log.
        OSError: there is none.
    """
    file = Path(path)
    return [record for _, record in _records(file / "log.jsonl" if file.is_dir() else file)]


def cut_log(out: Path, step: int) -> None:
    """Take away what the log says of steps after `step`, and a line that was cut off.

    Raises:
        ValueError: it is not a log.
        OSError: the disk is full or not writable; the log is as it was.
    """
    path = out / "log.jsonl"
    if not path.exists():
        return
    kept = "".join(line + "\n" for line, record in _records(path) if record["step"] <= step).encode()
    if kept != path.read_bytes():
        with _advised("cannot take away what was not saved", path):
            write_atomically(path, kept)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the lines of a log and what they say, but not a last one that was cut off."""
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and all(isinstance(record.get(name), int | float) for name in ("step", "loss")):
            yield line, record
        elif number < len(lines):
            why = "not a record of training with step and loss; take the line out"
            raise ValueError(f"{path}, line {number}: {why}")


def _lines(path: Path) -> list[str]:
    """The lines of a log; a sample may have other breaks in it, such as U+2028, and a last line half a letter."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return lines if lines[-1] else lines[:-1]


@contextlib.contextmanager
def _advised(what: str, path: Path) -> Iterator[None]:
    """Say of an error of the disk what could not be done, and what to do."""
    try:
        yield
    except OSError as error:
        why = f"{what}: {error.strerror or error}; free some space, then continue with --resume"
        raise OSError(error.errno, why, str(path)) from error
