"""Figures as files: what can be written is checked before the work begins, and a file is there whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.cli.flags import UsageError
from refdiff.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg")
DRAWN = (*PICTURES, ".pdf")


def check_file(flag: str, path: Path, kinds: tuple[str, ...] = PICTURES) -> None:
    """Refuse a file that could not be written later.

    Raises:
        UsageError: its ending is not among `kinds`, or `check_place` refuses it.
        ImportError: it is a picture, and there is no matplotlib; says how to get it.
    """
    kind = path.suffix.lower()
    if kind not in kinds:
        raise UsageError(f"{flag} {path}: the ending says what to write, and must be one of {', '.join(kinds)}")
    check_place(flag, path)
    if kind in DRAWN:
        from refdiff.viz.appearance import new_figure

        new_figure(1, 1)


def check_place(flag: str, path: Path) -> None:
    """Refuse a place where no file can be written.

    Raises:
        UsageError: its folder is not there, it is a folder itself, or one may not write there.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{flag} {path}: is a folder; name a file in it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(f"{flag} {path}: may not be written; name another place")


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the ending, on no ground of its own."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lower()[1:], dpi=150)
    write_atomically(path, content.getvalue())
