"""What the rows of `refdiff bench` are meant to reach on a processor, and the table of those that fall short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Aim:
    """What a row is meant to reach: at least this ratio (of memory, at most), and this share of the ceiling.

    lossless: how many times as much it would have if what the README names as lost there cost nothing. most and
    most_share: what the best of earlier runs had, or 0.
    """

    ratio: float
    share: float = 0.0
    beside: str = "transformers"
    lossless: float = 1.0
    most: float = 0.0
    most_share: float = 0.0


AIMS = {
    "decode:128": Aim(2.1, 0.93, lossless=1.06, most=2.16, most_share=1.0),
    "decode:2048": Aim(2.4, 0.93, lossless=1.04, most=2.06, most_share=0.91),
    "decode:8192": Aim(2.4, 0.93, lossless=1.06, most=2.78, most_share=0.89),
    "prefill:128": Aim(1.35),
    "prefill:512": Aim(1.33, 0.94, lossless=1.01, most=1.52, most_share=0.96),
    "prefill:2048": Aim(1.37, 0.94, lossless=1.03, most=1.42, most_share=0.92),
    "prefill:8192": Aim(1.3, 0.94, lossless=1.02, most=1.78, most_share=0.86),
    "decode:128x2": Aim(3.4, lossless=1.07, most=3.46),
    "decode:128x4": Aim(3.4, lossless=1.08, most=3.54),
    "decode:128x8": Aim(2.6, lossless=1.04, most=2.79),
    "decode:128x16": Aim(2.5, lossless=1.08, most=3.21),
    "lookup": Aim(3.0, lossless=1.08, most=3.26),
    "edit": Aim(3.0, most=3.23),
    "product:1": Aim(1.0, beside="onnxruntime", lossless=1.09, most=0.98),
    "product:2": Aim(0.9, beside="onnxruntime", lossless=1.08, most=1.09),
    "product:4": Aim(0.9, beside="onnxruntime", lossless=1.09, most=0.99),
    "product:8": Aim(0.9, beside="onnxruntime", lossless=1.04, most=0.93),
    "product:16": Aim(0.9, beside="onnxruntime", lossless=1.09, most=1.10),
    "product:128": Aim(1.0, beside="onnxruntime", most=1.35),
    "product:512": Aim(1.0, beside="onnxruntime", most=1.12),
    "load": Aim(8.0),
    "cold": Aim(6.0),
    "memory:2048": Aim(0.87, lossless=5.15 / 5.28, most=0.91),
}
"""The rows in the order of the table; those without an aim come after them."""

STORED_AIMS = {"decode:128": Aim(0.85), "memory:128": Aim(3.2e9)}
"""Of refdiff with its weights as stored: at least so fast beside expanded ones, and at most so many bytes."""

TRAINING_AIM = Aim(1.0)
"""No slower than the other, and no more memory."""


def short_of(row: dict[str, Any], aim: Aim | None) -> list[str]:
    """Say in a line of the table in what a row falls short of its aim, and what there could be.

    What the ratio would take is a share of the ceiling: the other's times the aim.
    """
    if aim is None:
        return []
    if row["error"] or aim.beside not in row["against"]:
        return [_line(row["title"], f"not measured beside {aim.beside}", _ratio(aim.ratio), "", "", "")]
    beside, found = row["against"][aim.beside], []
    ratio, shares = beside["ratio"]["median"], (row["ceiling"] or {}).get("share", {})
    less = row["unit"] == "B"
    if beside["difference"]:
        found.append(("another result", "the same", "", "", ""))
    if ratio > aim.ratio if less else ratio < aim.ratio:
        most = min(ratio, aim.most or ratio) if less else max(ratio, aim.most)
        takes = _percent(aim.ratio * shares[aim.beside]["median"]) if aim.beside in shares else ""
        found.append((_ratio(ratio), _ratio(aim.ratio), takes, _ratio(ratio * aim.lossless), _ratio(most)))
    if aim.share and "refdiff" not in shares:
        found.append(("share not measured", _percent(aim.share), "", "", ""))
    elif aim.share and (share := shares["refdiff"]["median"]) < aim.share:
        most_share = max(share, aim.most_share)
        found.append((_percent(share), _percent(aim.share), "", _percent(share * aim.lossless), _percent(most_share)))
    return [_short(row["title"], found)] if found else []


def short_of_stored(row: dict[str, Any]) -> list[str]:
    """Say in such a line where weights as they are stored cost more than is aimed at, or give other tokens."""
    aim = STORED_AIMS.get(row["row"])
    if aim is None:
        return []
    title, beside, found = f"{row['title']} as stored", row["against"].get("stored"), []
    in_bytes = row["unit"] == "B"
    if row["error"] or beside is None:
        return [_line(title, "not measured", _gigabytes(aim.ratio) if in_bytes else _ratio(aim.ratio), "", "", "")]
    if beside["difference"]:
        found.append(("another result", "the same", "", "", ""))
    if in_bytes and (most := row["sides"]["stored"]["rate"]["median"]) > aim.ratio:
        found.append((_gigabytes(most), _gigabytes(aim.ratio), "", "", ""))
    if not in_bytes and (speed := 1 / beside["ratio"]["median"]) < aim.ratio:
        found.append((_ratio(speed), _ratio(aim.ratio), "", "", ""))
    return [_short(title, found)] if found else []


def _short(title: str, found: list[tuple[str, ...]]) -> str:
    return _line(title, *(", ".join(filter(None, cells)) for cells in zip(*found, strict=True)))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(value: float) -> str:
    return f"{value:.2f}×"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
