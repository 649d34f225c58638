"""Objects in few words, and long lines broken for a terminal: what the reports of the oracle are printed with."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

MAX_SHOWN = 8
"""How many arrays are named at most: the first ones, and the last."""


def array_summary(arrays: Mapping[str, Any]) -> str:
    """Name, shape and type of each: "q (2, 12, 9, 16) float32, … (44), out (2, 6, 9, 32) float32"."""
    names = list(arrays)
    if len(names) > MAX_SHOWN:
        first, last = (
            array_summary({name: arrays[name] for name in some}) for some in (names[: MAX_SHOWN - 1], names[-1:])
        )
        return f"{first}, … ({len(names)}), {last}"
    return ", ".join(_describe_array(name, arrays[name]) for name in names)


def _describe_array(name: str, x: Any) -> str:
    if not hasattr(x, "shape"):
        return f"{name} {type(x).__name__}"
    return f"{name} {tuple(x.shape)} {str(x.dtype).rpartition('.')[2]}"


_UNBROKEN = re.compile(r" ± |\([^()]{1,50}\)")
"""What stays in one line: a number and what it may be off by, (b 0, head 3, t 95), (fits, residual 0.71)."""


def wrap_text(text: str, width: int = 80) -> str:
    """Break long lines between words, or where they are in columns between two columns; what follows is indented."""
    return "\n".join(part for line in text.splitlines() for part in _wrap_line(line, width))


def _wrap_line(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    body = line.lstrip()
    start = " " * (len(line) - len(body))
    if len(re.findall(r"\S {2,}(?=\S)", body)) > 1:  # one is the gap before a remark
        body = re.sub(r"(?<=\S) (?=\S)", "\0", body)
    body = _UNBROKEN.sub(lambda found: found[0].replace(" ", "\0"), body)
    later = f"{start}    "
    wrap = textwrap.TextWrapper(
        width, initial_indent=start, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\0", " ") for part in wrap.wrap(body)]
