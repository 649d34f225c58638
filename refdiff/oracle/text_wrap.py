"""Text for a terminal: long lines are broken where that does no harm to numbers or columns."""

from __future__ import annotations

import re
import textwrap

_KEPT = re.compile(r" ± |\([^()]{1,50}\)")
"""What stays in one line: a number and what it may be off by, (b 0, head 3, t 95), (fits, residual 0.71)."""


def wrap_text(text: str, width: int = 80) -> str:
    """Break long lines between words, or where they are in columns between two columns; what follows is indented."""
    return "\n".join(part for line in text.splitlines() for part in _broken(line, width))


def _broken(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    body = line.lstrip()
    start = " " * (len(line) - len(body))
    if len(re.findall(r"\S {2,}(?=\S)", body)) > 1:  # one is the gap before a remark
        body = re.sub(r"(?<=\S) (?=\S)", "\0", body)
    body = _KEPT.sub(lambda found: found[0].replace(" ", "\0"), body)
    later = f"{start}    "
    wrap = textwrap.TextWrapper(
        width, initial_indent=start, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\0", " ") for part in wrap.wrap(body)]
