"""Which files a checkpoint may lead to: those of its own folder."""

from __future__ import annotations

import os
from pathlib import Path

from refdiff.errors import CheckpointError


def inside(folder: Path, name: str) -> Path:
    """Return the real path of a file of a checkpoint; refuse one that lies outside the checkpoint's folder.

    `name` must be a plain file name, and what it leads to must lie in the folder; see `follow`. So a checkpoint from
    elsewhere cannot name a file of its reader's.

    Raises `CheckpointError` when the name has a directory in it, or is a link that leads elsewhere.
    """
    check_name(folder, name)
    return follow(folder, folder / name)


def check_name(folder: Path, name: str) -> None:
    """Refuse a name that is not a plain one of a file in this folder, without a look at what is there.

    Raises `CheckpointError`.
    """
    if name in ("", ".", "..") or not name.isprintable() or any(character in name for character in "/\\:"):
        raise CheckpointError(f"{folder}: {ascii(name)[:80]} is not a plain name of a file in this folder")


def follow(folder: Path, path: Path) -> Path:
    """Follow all symbolic links from `path`, which is in `folder`, and refuse to be led out of `folder`.

    One layout may point out of it: in Hugging Face's cache, `snapshots/<revision>/<name>` is a link to `blobs/<hash>`
    of the same repository, or from huggingface_hub 2 on further to `blobs/<2 digits>/<hash>` of the whole cache.

    Raises `CheckpointError` when a link leads elsewhere.
    """
    root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    blobs: list[Path] = []
    if root.parent.name == "snapshots":
        repo = root.parent.parent
        blobs = [repo / "blobs", repo.parent / "blobs" / real.name[:2]]
    if root not in real.parents and real.parent not in blobs:
        raise CheckpointError(
            f"{folder}: {ascii(path.name)[:80]} is a link that leads out of the checkpoint's folder and is not "
            "followed; put the file itself, or a hard link to it, into the folder"
        )
    return real
