"""A text file → its documents in chunks, of which at most two are in memory."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

SEPARATOR = "<|endoftext|>"
"""A line of its own between two documents, and the token before every document."""

PIECE = 2**16
"""Characters of a chunk of a long document."""

_LINE = 2**16  # bytes of a long line that are read at a time
_SENTENCE = re.compile(r"[。！？]|[.!?…](?=\s)")


def pieces(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, bool]]:
    """Yield the text between two bytes of a UTF-8 file as (piece, whether its document ends with it).

    A long document is split before white space. Byte-level BPE splits there too, so the tokens stay the same. Documents
    of white space alone are left out, as are the line break before a separator and a byte order mark.

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
            if at == 0:
                line = line.removeprefix("\ufeff")
            at += len(raw)
            if line.strip() == SEPARATOR:
                if begun or held.strip():
                    yield held.removesuffix("\n"), True
                held, begun = "", False
                continue
            held += line
            if len(held) >= PIECE:
                cut = _last_split(held)
                yield held[:cut], False
                held, begun = held[cut:], True
    _decoded(decoder, b"", path, at, final=True)
    if begun or held.strip():
        yield held.removesuffix("\n"), True


def beginning(path: Path, stop: int, most: int) -> Iterator[str]:
    """Yield the pieces of the text before byte `stop`, but not more than `most` bytes."""
    end = stop if stop <= most else find_split(path, most - most // 8, most)
    yield from (piece for piece, _ in pieces(path, 0, end))


def split_at(path: Path, validation: float) -> int:
    """Return the byte at which the last part of a file begins: at 1 − `validation` of it, or a little later."""
    size = path.stat().st_size
    return find_split(path, int(size * (1 - validation)), size)


def find_split(path: Path, at: int, stop: int) -> int:
    """Return the first byte from `at` to `stop` before which a text may be split.

    That is after the first line break; without one, after the first sentence, else word, else character.
    """
    with path.open("rb") as file:
        file.seek(at)
        while file.tell() < stop and (line := file.readline(min(_LINE, stop - file.tell()))):
            if line.endswith(b"\n"):
                if file.tell() < stop:
                    return file.tell()
                break
        file.seek(at)
        window = file.read(min(_LINE, stop - at))
    letters = window.lstrip(bytes(range(0x80, 0xC0)))  # without the rest of a character that begins before
    text = letters.decode("utf-8", errors="ignore").rstrip()
    gap = _SENTENCE.search(text) or re.search(r"\S(?=\s)", text)
    behind = at + len(window) - len(letters) + (len(text[: gap.end()].encode()) if gap else 0)
    return min(behind, stop)


def _decoded(decoder: codecs.IncrementalDecoder, raw: bytes, path: Path, at: int, *, final: bool = False) -> str:
    try:
        return decoder.decode(raw, final)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text near byte {at + error.start}; write the file as UTF-8") from None


def _last_split(text: str) -> int:
    cut = max(text.rfind(" "), text.rfind("\n"))
    while cut > 0 and text[cut - 1].isspace():
        cut -= 1
    return cut if cut > 0 else len(text)
