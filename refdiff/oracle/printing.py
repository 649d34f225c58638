"""Format the oracle's reports: short descriptions of arrays, and lines wrapped to the width of a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

MAX_SHOWN = 8
"""The most arrays that are described: the first ones, and the last."""


def array_summary(arrays: Mapping[str, Any]) -> str:
    """Return name, shape and dtype of each array: "q (2, 12, 9, 16) float32, … (44), out (2, 6, 9, 32) float32"."""
    described = [_describe_array(name, x) for name, x in arrays.items()]
    if len(described) > MAX_SHOWN:
        described[MAX_SHOWN - 1 : -1] = [f"… ({len(arrays)})"]
    return ", ".join(described)


def _describe_array(name: str, x: Any) -> str:
    if not hasattr(x, "shape"):
        return f"{name} {type(x).__name__}"
    return f"{name} {tuple(x.shape)} {str(x.dtype).rpartition('.')[2]}"


def list_first(names: Sequence[str], limit: int) -> str:
    """Return the first names, and how many there are if these are not all: "a, b, … (5)"."""
    return ", ".join(names[:limit]) + (f", … ({len(names)})" if len(names) > limit else "")


WIDTH = 80
"""The columns of a terminal that reports are wrapped to."""
_UNBROKEN = re.compile(r" ± |\([^()]{1,50}\)")
"""Text that no line break splits: "1.5 ± 0.1", "(b 0, head 3, t 95)", "(fits, residual 0.71)"."""


def wrap_text(text: str) -> str:
    """Wrap long lines between words, or a table's rows between columns; continuation lines are indented."""
    return "\n".join(part for line in text.splitlines() for part in _wrap_line(line))


def _wrap_line(line: str) -> list[str]:
    if len(line) <= WIDTH:
        return [line]
    body = line.lstrip()
    start = " " * (len(line) - len(body))
    if len(re.findall(r"\S {2,}(?=\S)", body)) > 1:  # several gaps: a row of a table; one stands before a remark
        body = re.sub(r"(?<=\S) (?=\S)", "\0", body)
    body = _UNBROKEN.sub(lambda found: found[0].replace(" ", "\0"), body)
    later = f"{start}    "
    wrap = textwrap.TextWrapper(
        WIDTH, initial_indent=start, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\0", " ") for part in wrap.wrap(body)]
