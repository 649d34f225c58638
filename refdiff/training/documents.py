"""A text file → its documents, piece by piece: no more of the file is in memory than two pieces."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

SEPARATOR = "<|endoftext|>"
"""A line of its own that stands between two documents, and the token that stands before every document."""

PIECE = 2**16
"""How many characters of a long document come at a time."""

_LINE = 2**16  # bytes of a long line that are read at a time
_STRETCH = 2**16  # bytes in one place of a sample
_SENTENCE = re.compile(r"[。！？]|[.!?…](?=\s)")


def pieces(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, bool]]:
    """Give the text between two bytes of a UTF-8 file as (piece, whether its document ends with it).

    A long document is cut before white space, where byte-level BPE cuts too, so that its tokens are those of the whole.
    Documents of nothing but white space are left out, and so are the line break before a separator and the mark at the
    beginning of a file that says it is UTF-8.

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
                cut = _before_last_space(held)
                yield held[:cut], False
                held, begun = held[cut:], True
    _decoded(decoder, b"", path, at, final=True)
    if begun or held.strip():
        yield held.removesuffix("\n"), True


def sample(path: Path, stop: int, most: int) -> Iterator[str]:
    """Give the pieces of the text before `stop`; of more than `most` bytes, as many stretches as fit into those."""
    if stop <= most:
        yield from (piece for piece, _ in pieces(path, 0, stop))
        return
    count = max(most // _STRETCH, 1)
    length = most // count
    slack = length // 8
    for i in range(count):
        begin = stop * i // count
        end = begin + length
        first = cut_behind(path, begin, begin + slack) if begin else 0
        yield from (piece for piece, _ in pieces(path, first, cut_behind(path, end - slack, end)))


def split_at(path: Path, validation: float) -> int:
    """Return the byte at which the last part of a file begins, 1 − `validation` of it or a little behind."""
    size = path.stat().st_size
    return cut_behind(path, int(size * (1 - validation)), size)


def cut_behind(path: Path, at: int, stop: int) -> int:
    """Return the first byte between two of a file before which a text may be cut.

    That is behind the first line break; where there is none, behind the first sentence, or else word, or else letter.
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
    letters = window.lstrip(bytes(range(0x80, 0xC0)))  # a letter that begins before
    text = letters.decode("utf-8", errors="ignore")
    found = _SENTENCE.search(text) or re.search(r"\S(?=\s)", text)
    behind = at + len(window) - len(letters) + (len(text[: found.end()].encode()) if found else 0)
    return min(behind, stop)


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
