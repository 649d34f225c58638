"""A text file → its documents, piece by piece: no more of the file is in memory than two pieces."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

SEPARATOR = "<|endoftext|>"
"""A line of its own that stands between two documents, and the token that stands before every document."""

PIECE = 2**16
"""How many characters of a long document come at a time."""

_LINE = 2**16  # bytes of a long line that are read at a time


def pieces(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, bool]]:
    """Give the text between two bytes of a UTF-8 file as (piece, whether its document ends with it).

    A long document is cut before white space, where byte-level BPE cuts too, so that its tokens are those of the whole.
    Documents of nothing but white space are left out, and so is the line break before a separator.

    Raises:
        ValueError: the file is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    held, begun, at = "", False, start
    with path.open("rb") as file:
        file.seek(start)
        while stop is None or at < stop:
            raw = file.readline(_LINE if stop is None else min(_LINE, stop - at))
            if not raw:
                break
            line = _decoded(decoder, raw, path, at)
            at += len(raw)
            if line.strip() == SEPARATOR:
                if begun or held.strip():
                    yield held.removesuffix("\n"), True
                held, begun = "", False
                continue
            held += line
            if len(held) >= PIECE:
                cut = _before_last_space(held)
                yield held[:cut], False
                held, begun = held[cut:], True
    _decoded(decoder, b"", path, at, final=True)
    if begun or held.strip():
        yield held.removesuffix("\n"), True


def split_at(path: Path, validation: float) -> int:
    """Return the byte at which the last part of a file begins: the first line break behind 1 − `validation` of it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(int(size * (1 - validation)))
        while (line := file.readline(_LINE)) and not line.endswith(b"\n"):
            pass
        return file.tell()


def _decoded(decoder: codecs.IncrementalDecoder, raw: bytes, path: Path, at: int, *, final: bool = False) -> str:
    try:
        return decoder.decode(raw, final)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text near byte {at + error.start}; write the file as UTF-8") from None


def _before_last_space(text: str) -> int:
    cut = max(text.rfind(" "), text.rfind("\n"))
    while cut > 0 and text[cut - 1].isspace():
        cut -= 1
    return cut if cut > 0 else len(text)
