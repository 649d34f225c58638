"""Figures as files: what can be written is checked before the work begins, and a file is there whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.cli.flags import UsageError
from refdiff.model.json_files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg")


def check_file(flag: str, path: Path, kinds: tuple[str, ...] = PICTURES) -> None:
    """Refuse a file that could not be written later.

    Raises:
        UsageError: its ending is not among `kinds`, or its folder is not there.
        ImportError: it is a picture, and there is no matplotlib; says how to get it.
    """
    kind = path.suffix.lower()
    if kind not in kinds:
        raise UsageError(f"{flag} {path}: the ending says what to write, and must be one of {', '.join(kinds)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {path.parent}")
    if kind in PICTURES:
        from refdiff.viz.appearance import new_figure

        new_figure(1, 1)


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the ending, on no ground of its own."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lower()[1:], dpi=150)
    write_atomically(path, content.getvalue())
