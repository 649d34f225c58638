"""The files and folders that a command writes, checked before the work begins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.cli.flags import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg")
DRAWN = (*PICTURES, ".pdf")


def check_file(flag: str, path: Path, kinds: tuple[str, ...]) -> None:
    """Raise `UsageError` for a file that could not be written: a wrong suffix, or no matplotlib for a picture."""
    kind = path.suffix.lower()
    check_place(flag, path)
    if kind not in kinds:
        raise UsageError(
            f"{flag} {path}: got {kind or 'no suffix'}, expected a file name that ends in {', '.join(kinds)}"
        )
    if kind in DRAWN:
        from refdiff.viz.appearance import new_figure

        new_figure(1, 1)


def check_place(flag: str, path: Path) -> None:
    """Raise `UsageError` for a path that cannot be written."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{flag} {path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise UsageError(f"{flag} {path}: got a folder, expected a file; name a file in it")
    if path.exists() and not path.is_file():
        raise UsageError(f"{flag} {path}: got a device or a pipe, expected a file; name another")
    # A new file replaces the old one, where a shell's later output goes on into the old one and is lost.
    if path.exists() and any(os.path.samestat(path.stat(), os.fstat(stream)) for stream in (1, 2)):
        raise UsageError(f"{flag} {path}: got the file that the shell writes the output to; name another")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(f"{flag} {path}: may not be written; name another place")


def check_folder(flag: str, path: Path) -> None:
    """Raise `UsageError` for a folder that cannot be made, or be written into."""
    place = path.absolute()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not there.is_dir():
        raise UsageError(f"{flag} {path}: {there.name} is a file, expected a folder; name another place")
    if not os.access(there, os.W_OK):
        raise UsageError(f"{flag} {path}: may not be written; name another place")


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the suffix, with a transparent background."""
    from refdiff.files import replace_atomically

    with replace_atomically(path) as file:
        figure.savefig(file, format=path.suffix.lower()[1:], dpi=150)


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays into a compressed .npz file."""
    import numpy as np

    from refdiff.files import replace_atomically

    with replace_atomically(path) as file:
        np.savez_compressed(file, **arrays)
