"""A training run on disk. A checkpoint is an ordinary model folder, and is written atomically.

    OUT/corpus/            tokens and tokenizer, see data.py
    OUT/step-000400/       config.json, model.safetensors, tokenizer.json: what transformers and refdiff load;
                           optimizer.safetensors and training.json: what resuming needs beside that
    OUT/log.jsonl          one line for each record

A checkpoint is written under another name and renamed when all of it is on the disk, so a folder named step-… is
complete. The one before it is kept: it is known to be usable, since steps have been made from it. One process at a time
trains in a folder: two would mix their logs and delete each other's files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.browser import require
from refdiff.checkpoint_files import checkpoints
from refdiff.errors import CheckpointError
from refdiff.files import (
    MAX_JSON,
    copy_file,
    follow,
    lock,
    open_file,
    read_json,
    read_text,
    write_atomically,
    write_json,
)
from refdiff.model.commit import sync_folder
from refdiff.model.weights.safetensors_file import write_safetensors

KEPT = 2
"""How many checkpoints stay on the disk, unless the run says otherwise."""

_STAGING, _REPLACED = ".step-", "-replaced"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
LOCK = ".refdiff-train.lock"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a folder against all others. It is created if needed, and deleted at the end if it is empty.

    The operating system releases the lock when the process ends. A lock file that is left behind locks nothing.

    Raises:
        RuntimeError: the folder is locked already, by another process or in this one.
        OSError: the folder or the file in it cannot be made.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except PermissionError as error:
        raise PermissionError(error.errno, error.strerror, str(out)) from None
    try:
        if not _try_lock(descriptor, out / LOCK):
            raise RuntimeError(
                f"{out}: another process or thread trains in this folder: wait until it ends, or name another folder"
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


def _try_lock(descriptor: int, path: Path) -> bool:
    """Lock an open file; return False if it is locked already, or has just been deleted."""
    if not lock(descriptor, wait=False):
        return False
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def note_command(out: Path, command: list[str]) -> None:
    """Write the command of a run into its lock file, which it leaves behind if it is killed."""
    (out / LOCK).write_text(json.dumps(command), encoding="utf-8")


def noted_command(out: Path) -> list[str]:
    """Return the command of a run that was killed before its first checkpoint; empty if there is none."""
    try:
        noted = [] if checkpoints(out) else json.loads(read_text(out / LOCK, max_bytes=MAX_JSON, folder=out))
    except (ValueError, RecursionError):
        return []
    return noted if isinstance(noted, list) and all(isinstance(word, str) for word in noted) else []


def save(
    out: Path, step: int, model: Any, state: dict[str, Any], about: dict[str, Any], tokenizer: Path, keep: int = KEPT
) -> Path:
    """Write the checkpoint of a step, delete all but the last `keep`, and return its folder.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are kept.
    """
    staging, folder = out / f"{_STAGING}{step:06d}", out / name(step)
    recover(out)
    try:
        staging.mkdir()
        model.save_pretrained(staging)
        for file in TOKENIZER:
            copy_file(tokenizer / file, staging / file, folder=tokenizer)
        write_safetensors(staging / "optimizer.safetensors", state, model.dtype)
        describe(staging, step, about)
        if folder.exists():  # of the same step, saved again
            folder.rename(out / f"{staging.name}{_REPLACED}")
        staging.rename(folder)
    except OSError as error:
        then = "free some space, then start again"
        if checkpoints(out):
            then = "earlier ones are unharmed; free some space, then continue with --resume"
        what = f"cannot write the checkpoint of step {step}: {error.strerror or error}; {then}"
        raise OSError(error.errno, what, str(out)) from error
    finally:  # after Ctrl-C, too
        recover(out)
    sync_folder(out)
    for _, old in checkpoints(out)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def recover(out: Path) -> None:
    """Take back a checkpoint whose replacement did not get its place, and delete what else an ended save left.

    No other process may save in the folder meanwhile: its files look the same.
    """
    for path in out.glob(f"{_STAGING}*{_REPLACED}"):
        folder = out / path.name.removeprefix(".").removesuffix(_REPLACED)
        if not folder.exists():
            path.rename(folder)
    for path in out.glob(f"{_STAGING}*"):
        shutil.rmtree(path, ignore_errors=True)


def name(step: int) -> str:
    """Return the name of a step's folder."""
    return f"step-{step:06d}"


def describe(folder: Path, step: int, about: dict[str, Any]) -> None:
    """Write training.json: the step, and the settings that resuming needs."""
    write_json(folder / "training.json", {**about, "step": step})


def update_description(folder: Path, step: int, about: dict[str, Any]) -> None:
    """Replace training.json of an existing checkpoint.

    Raises:
        OSError: the disk is full or not writable; the file is unchanged.
    """
    with _add_advice("cannot write the settings that are to change", folder / "training.json"):
        describe(folder, step, about)


def latest(out: Path) -> tuple[Path, dict[str, Any]]:
    """Return the last checkpoint's folder and training.json, and delete incomplete ones that a killed run left.

    Where the folder is locked, nothing is deleted: a process that trains in it may be saving.

    Raises:
        CheckpointError: there is no checkpoint; or it or the corpus is a link that leads out of the folder; or
            training.json is broken or names another step.
    """
    if any(out.glob(f"{_STAGING}*")):
        with contextlib.suppress(RuntimeError, OSError), locked(out):
            recover(out)
    saved = checkpoints(out)
    if not saved:
        what = "no checkpoint to resume (no folder step-…)" if out.is_dir() else "no such folder"
        raise CheckpointError(f"{out}: {what}; train without --resume in a new folder")
    step, folder = saved[-1]
    for path in (folder, out / "corpus"):
        follow(out, path)
    about = read_json(folder / "training.json")
    if about.get("step") != step:
        raise broken(folder / "training.json", f"step is {about.get('step')!r}")
    return folder, about


def broken(file: Path, why: object) -> CheckpointError:
    """Return the error for a file of a checkpoint whose content is wrong."""
    do = f"delete {file.parent} to resume the one before, or train from the beginning"
    return CheckpointError(f"{file}: not what this version writes: {why}; {do}")


def optimizer_state(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of the optimizer.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    require("safetensors", "resuming a run")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / "optimizer.safetensors"
    open_file(path, folder=folder).close()  # no pipe, and no link that leads out of the folder
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; delete {folder} to resume the one before") from None


def log(out: Path, record: dict[str, Any]) -> None:
    """Append a record to the log.

    Raises:
        OSError: the disk is full or not writable; the checkpoints are unchanged.
    """
    path = out / "log.jsonl"
    with (
        _add_advice(f"cannot write the record of step {record['step']}", path),
        path.open("a", encoding="utf-8") as file,
    ):
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the records of a log.jsonl, or of the one in a run's folder, without an incomplete last line.

    Raises:
        ValueError: it is not a log.
        OSError: the file does not exist.
    """
    file = Path(path)
    return [record for _, record in _records(file / "log.jsonl" if file.is_dir() else file)]


def truncate_log(out: Path, step: int) -> None:
    """Delete the records of steps after `step` from the log, and an incomplete last line.

    Raises:
        ValueError: it is not a log.
        CheckpointError: it is not a regular file, or a link that leads out of the folder.
        OSError: the disk is full or not writable; the log is unchanged.
    """
    path = out / "log.jsonl"
    if not os.path.lexists(path):
        return
    open_file(path, folder=out).close()  # `log` will append to it
    kept = "".join(line + "\n" for line, record in _records(path) if record["step"] <= step).encode()
    if kept != path.read_bytes():
        with _add_advice("cannot delete the records of steps that were not saved", path):
            write_atomically(path, kept)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines of a log and their records, but not an incomplete last one."""
    # samples may hold other line breaks, such as U+2028
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
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


@contextlib.contextmanager
def _add_advice(what: str, path: Path) -> Iterator[None]:
    """Add to an error of the disk what failed, and what to do."""
    try:
        yield
    except OSError as error:
        why = f"{what}: {error.strerror or error}; free some space, then continue with --resume"
        raise OSError(error.errno, why, str(path)) from error
