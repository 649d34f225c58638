"""Docstrings are written to be read in a terminal; this makes reStructuredText of them for pages.

Single backticks are code, and a link where they name something. What is indented and under no heading is a program or
a table, kept as it is. Headings that the project uses become fields; equations are set (equations.py).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from equations import to_rst

HEADINGS = (
    *("Equation", "Used as", "Shapes", "Precision", "Units", "Source"),
    *("Args", "Attributes", "Returns", "Yields", "Raises"),
)
NAMED = ("Args", "Attributes", "Raises")
_HEADING = re.compile(rf"({'|'.join(HEADINGS)}):")
_ITEM = re.compile(r"(?P<names>\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): ?(?P<said>.*)")


def convert(lines: Sequence[str]) -> list[str]:
    """Turn the lines of a docstring, dedented, into those of a page."""
    made: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if heading := _HEADING.fullmatch(line.strip()) if line[:1] != " " else None:
            block, at = _indented(lines, at + 1)
            made += ["", *_field(heading[1], block), ""]
        elif block := _definitions(lines, at):
            made += ["", *_items(block), ""]
            at += len(block)
        elif line.startswith("    "):
            block, at = _indented(lines, at)
            made += ["", *_literal(block), ""]
        else:
            block, at = _paragraph(lines, at)
            made += _table(block) or _list(block) or [escaped(one) for one in block]
    return made


def programs(text: str) -> list[str]:
    """The Python programs in a docstring."""
    made = "\n".join(convert(text.splitlines()))
    found = re.findall(r"^\.\. code-block:: python\n\n((?:   .*\n|\n)+)", f"{made}\n", flags=re.MULTILINE)
    return [re.sub("^   ", "", program, flags=re.MULTILINE) for program in found]


def _indented(lines: Sequence[str], at: int) -> tuple[list[str], int]:
    """Lines from `at` on that are indented or empty, without the indentation."""
    end = at
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" ")):
        end += 1
    block = list(lines[at:end])
    while block and not block[-1].strip():
        block.pop()
    while block and not block[0].strip():
        block.pop(0)
    indent = min((len(line) - len(line.lstrip()) for line in block if line.strip()), default=0)
    return [line[indent:] for line in block], end


def _paragraph(lines: Sequence[str], at: int) -> tuple[list[str], int]:
    """The lines of a paragraph, or one empty line."""
    end = at + 1
    while lines[at].strip() and end < len(lines) and lines[end].strip() and not _HEADING.fullmatch(lines[end].strip()):
        if lines[end].startswith("    ") and not _is_aligned(lines[at:end]):
            break
        end += 1
    return list(lines[at:end]), end


def _definitions(lines: Sequence[str], at: int) -> list[str]:
    """Lines from `at` on, if they are two fields or more, each with what it is; further lines of one are indented."""
    end = at
    while end < len(lines) and (_ITEM.fullmatch(lines[end]) or (end > at and lines[end].startswith("    "))):
        end += 1
    ends = end == len(lines) or not lines[end].strip()
    return list(lines[at:end]) if ends and sum(line[:1] != " " for line in lines[at:end]) > 1 else []


def _is_aligned(lines: Sequence[str]) -> bool:
    """Whether lines stand in columns: two spaces or more inside of them."""
    return bool(lines) and all(re.search(r"\S {2,}\S", line) for line in lines)


def _table(block: list[str]) -> list[str]:
    """A paragraph whose lines stand in columns is a table of the terminal: it is kept as it is."""
    return ["", *_literal(block), ""] if len(block) > 1 and _is_aligned([x for x in block if x[:1] != " "]) else []


def _list(block: list[str]) -> list[str]:
    if not block[0].lstrip().startswith("- "):
        return []
    return ["", *(re.sub(r"^(\s*- |\s*)(.*)", lambda m: m[1] + escaped(m[2]), line) for line in block), ""]


def _literal(block: list[str]) -> list[str]:
    try:
        ast.parse("\n".join(block))
        language = "python"
    except SyntaxError:
        language = "text"
    return [f".. code-block:: {language}", "", *(f"   {line}".rstrip() for line in block)]


def _field(heading: str, block: list[str]) -> list[str]:
    if heading == "Equation":
        body = _sentences(block)
    elif heading in NAMED:
        body = _items(block)
    else:
        body = [escaped(line.replace("->", "→") if heading == "Shapes" else line) for line in block]
    return [f":{heading}:", *(f"    {line}".rstrip() for line in body)]


def _sentences(block: list[str]) -> list[str]:
    """Equations one under the other, as they are written, and what wraps in one line."""
    lines: list[str] = []
    for line in map(str.strip, block):
        begins = re.match(r"(with |\()?[^ ]+(\([^)]*\))? = |\(", line)
        if lines and not (begins and not re.search(r"(,| and| or|[a-z]| ⊙| −| \+) *$", lines[-1].rstrip(":"))):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return [f"| {to_rst(line)}" for line in lines]


def _items(block: list[str]) -> list[str]:
    """Name: what it is; further lines of one are indented or go on with the sentence."""
    items: list[list[str]] = []
    for line in block:
        found = None if line.startswith(" ") else _ITEM.fullmatch(line)
        if found:
            items.append([f"``{found['names']}``", found["said"]])
        elif items:
            items[-1][1] += f" {line.strip()}"
        else:
            items.append(["", line.strip()])
    return [f"* {name}: {escaped(said)}" if name else f"* {escaped(said)}" for name, said in items]


def escaped(text: str) -> str:
    """A line of prose: nothing but backticks means anything, and roles that stand there stay."""
    parts = re.split(r"(:[\w:]+:`[^`]+`|``.+?``|`[^`]+`)", text)
    return "".join(_code(part) if at % 2 else _plain(part) for at, part in enumerate(parts))


def _code(part: str) -> str:
    if part.startswith((":", "``")):
        return part
    inner = part.strip("`")
    return f":py:obj:`{inner}`" if re.fullmatch(r"[A-Za-z_][\w.]*", inner) else f"``{inner}``"


def _plain(part: str) -> str:
    return re.sub(r"([\\*|]|_(?=\W|$))", r"\\\1", part)
