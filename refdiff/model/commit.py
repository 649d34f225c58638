"""Replace the files of a checkpoint as one: a process killed at any moment leaves the old checkpoint or the new one.

1. New files are written and synced in a hidden folder `.refdiff-save-…` inside the checkpoint's folder.
2. That folder becomes `.refdiff-save` by one rename. From here on the new checkpoint counts.
3. The files move to their places. If this is interrupted, the next load or save of the folder finishes it.

Other programs see the old files, the new files, or in step 3 a folder without weights, but never a mixture: the file
that leads to the weights is deleted first and replaced last. Where only `model.safetensors` changes, steps 2 and 3
are one rename. Renaming leaves the data of old files alone, so a model whose arrays are memory-mapped can be saved over
itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from refdiff.checkpoint_files import INDEX, OTHER_TOKENIZER_FILES, SINGLE, TOKENIZER_FILES
from refdiff.errors import CheckpointError
from refdiff.files import MAX_JSON, lock, read_bytes, read_json, write_json

PENDING = ".refdiff-save"
_LIST = "files.json"
_CONFIGS = ("config.json", "generation_config.json")
_COPIED = (*TOKENIZER_FILES, *OTHER_TOKENIZER_FILES, "additional_chat_templates")
"""What a conversion writes beside a model's own files."""
_ENTRIES = (SINGLE, INDEX)
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")

T = TypeVar("T")

Identity = tuple[int, int, int]
"""A file's number, time of change and size."""


@contextlib.contextmanager
def replacing(folder: Path, *, wait: bool = True) -> Iterator[Path]:
    """Yield a folder for a checkpoint's files; if the block ends without an error, they replace those of `folder`.

    Raises:
        BlockingIOError: another process saves in the folder, and `wait` is False.
        OSError: a file cannot be written or moved; `is_pending` then says which of the two counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, wait=wait):
        _roll_forward(folder)
        for left in folder.glob(f"{PENDING}-*"):  # of a process that was killed: a living one would hold the lock
            shutil.rmtree(left, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{PENDING}-", dir=folder))
        try:
            yield staging
            _commit(folder, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def is_pending(folder: Path) -> bool:
    """Return whether a complete new checkpoint waits to be moved to its place by the next load or save."""
    return os.path.lexists(folder / PENDING)


def finish(folder: Path) -> None:
    """Finish a save that was interrupted while its files moved to their places.

    Raises:
        CheckpointError: the files cannot be moved, as in a folder that is not writable.
    """
    if not is_pending(folder):
        return
    try:
        with _locked(folder):
            _roll_forward(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: a save was interrupted; its files are in {PENDING} and cannot be moved to their places: "
            f"{error.strerror or error}; make the folder writable and load it again"
        ) from error


def read_consistently(folder: Path, read: Callable[[], T]) -> T:
    """Return the result of `read` on a checkpoint's files, and repeat it if a save replaced them meanwhile.

    Raises:
        CheckpointError: as `read`; or the files are replaced again and again.
    """
    for _ in range(3):
        finish(folder)
        before = _identities(folder)
        try:
            result = read()
        except CheckpointError:
            if _identities(folder) == before:
                raise
        else:
            if _identities(folder) == before:
                return result
    raise CheckpointError(f"{folder}: was replaced while the checkpoint was being loaded; load it again")


def _identities(folder: Path) -> list[Identity | None]:
    """Return what changes with every save, except one of `model.safetensors` alone, which is opened once and whole."""
    return [identity(folder / name) for name in (PENDING, *_CONFIGS, INDEX)]


def identity(path: Path) -> Identity | None:
    """Return what changes when a file is replaced or written to; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _commit(folder: Path, staging: Path) -> None:
    names = sorted(path.name for path in staging.iterdir())
    now = time.time_ns()
    for name in names:  # a file system reuses numbers of files, and its clock may stand still for some milliseconds
        os.utime(staging / name, ns=(now, now))
    changed = [name for name in names if name not in _CONFIGS or not _same(staging / name, folder / name)]
    if changed == [SINGLE]:
        (staging / SINGLE).replace(folder / SINGLE)
        sync_folder(folder)
        _delete_all_but(folder, names)
        return
    write_json(staging / _LIST, {"files": names})
    sync_folder(staging)
    staging.replace(folder / PENDING)
    sync_folder(folder)
    _roll_forward(folder)


def _roll_forward(folder: Path) -> None:
    """Move the files of `.refdiff-save` to their places; an interrupted run may have done some steps."""
    pending = folder / PENDING
    if not pending.is_dir() or pending.is_symlink():
        if is_pending(folder):
            raise CheckpointError(f"{pending}: not a folder that a save has left; delete it")
        return
    if os.path.lexists(pending / _LIST):
        names = _listed(pending / _LIST)
        last = SINGLE if SINGLE in names else INDEX
        if os.path.lexists(pending / last):
            for entry in _ENTRIES:
                (folder / entry).unlink(missing_ok=True)
            sync_folder(folder)
            for name in names:
                if name != last and os.path.lexists(pending / name):
                    (pending / name).replace(folder / name)
            sync_folder(folder)
            (pending / last).replace(folder / last)
            sync_folder(folder)
        _delete_all_but(folder, names)
    with contextlib.suppress(OSError):  # everything is in its place: what is left does no harm
        (pending / _LIST).unlink(missing_ok=True)
        pending.rmdir()


def _listed(path: Path) -> list[str]:
    """Read the names in a list of files; a folder from elsewhere could name any."""
    names = read_json(path).get("files")
    if not isinstance(names, list) or not all(
        isinstance(name, str) and (name in (*_CONFIGS, *_ENTRIES, *_COPIED) or _SHARD.fullmatch(name)) for name in names
    ):
        raise CheckpointError(f"{path}: not a list that a save has left; delete {path.parent}")
    return names


def _delete_all_but(folder: Path, names: list[str]) -> None:
    """Delete the weights that belong to an older checkpoint."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name not in names and (path.name in _ENTRIES or _SHARD.fullmatch(path.name)):
                path.unlink()


def _same(new: Path, old: Path) -> bool:
    try:
        return new.read_bytes() == read_bytes(old, max_bytes=MAX_JSON, folder=old.parent)
    except CheckpointError:
        return False


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Keep other processes and threads from saving here; the lock ends with the process, however that ends."""
    if os.name == "nt":  # which opens no folders
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not lock(descriptor, wait=wait):
            raise BlockingIOError(errno.EAGAIN, "another process writes here; wait until it ends", str(folder))
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder durable before the next ones, where the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
