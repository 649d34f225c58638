"""What the rows of `refdiff bench` are meant to reach on a processor, and the table of those that fall short."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

EARLIER: dict[str, list[tuple[Any, ...]]] = json.loads(
    Path(__file__).with_name("data").joinpath("speed_runs.json").read_text(encoding="utf-8")
)
"""Row → commit, ratio and, where there is a ceiling, share of it, of earlier runs on a processor of the same kind: the
medians of data/speed.json as git has them, to which those of the present one go before it is written anew."""


@dataclass(frozen=True)
class Aim:
    """What a row is meant to reach: at least this ratio (of memory, at most), and this share of the ceiling.

    lossless: how many times as much it would have if the losses that the performance page names cost nothing.
    """

    ratio: float
    share: float = 0.0
    lossless: float = 1.0


AIMS = {
    "decode:128": Aim(2.1, 0.93, lossless=1.06),
    "decode:2048": Aim(2.4, 0.93, lossless=1.04),
    "decode:8192": Aim(2.4, 0.93, lossless=1.06),
    "prefill:128": Aim(1.35),
    "prefill:512": Aim(1.33, 0.94, lossless=1.01),
    "prefill:2048": Aim(1.37, 0.94, lossless=1.05),
    "prefill:8192": Aim(1.3, 0.94, lossless=1.07),
    "decode:128x2": Aim(3.4, lossless=1.07),
    "decode:128x4": Aim(3.4, lossless=1.08),
    "decode:128x8": Aim(2.6, lossless=1.04),
    "decode:128x16": Aim(2.5, lossless=1.08),
    "lookup": Aim(3.0, lossless=1.08),
    "load": Aim(8.0),
    "cold": Aim(6.0),
    "memory:2048": Aim(0.87, lossless=5.15 / 5.28),
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
    if row["error"] or "transformers" not in row["against"]:
        return [_line(row["title"], "not measured beside transformers", _ratio(aim.ratio), "", "", "")]
    beside, found = row["against"]["transformers"], []
    ratio, shares = beside["ratio"]["median"], (row["ceiling"] or {}).get("share", {})
    if beside["difference"]:
        found.append(("another result", "the same", "", "", ""))
    if ratio > aim.ratio if row["unit"] == "B" else ratio < aim.ratio:
        takes = _percent(aim.ratio * shares["transformers"]["median"]) if "transformers" in shares else ""
        found.append((_ratio(ratio), _ratio(aim.ratio), takes, _ratio(ratio * aim.lossless), _runs(row, 1, _ratio)))
    if aim.share and "refdiff" not in shares:
        found.append(("share not measured", _percent(aim.share), "", "", ""))
    elif aim.share and (share := shares["refdiff"]["median"]) < aim.share:
        lossless = _percent(share * aim.lossless)
        found.append((_percent(share), _percent(aim.share), "", lossless, _runs(row, 2, _percent)))
    return [_short(row["title"], found)] if found else []


def met(row: dict[str, Any], aim: Aim | None) -> list[str]:
    """Say in a line what a row has that does not fall short of its aim, and what earlier runs had."""
    if aim is None or short_of(row, aim):
        return []
    here, wanted, earlier = _ratio(row["against"]["transformers"]["ratio"]["median"]), _ratio(aim.ratio), [1]
    if aim.share:
        here += f", {_percent(row['ceiling']['share']['refdiff']['median'])}"
        wanted, earlier = f"{wanted}, {_percent(aim.share)}", [1, 2]
    runs = ", ".join(filter(None, (_runs(row, place, _ratio if place == 1 else _percent) for place in earlier)))
    return [_line(row["title"], here, wanted, runs)]


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


def _runs(row: dict[str, Any], place: int, spelled: Callable[[float], str]) -> str:
    """The lowest, middle and highest of earlier runs."""
    found = sorted(run[place] for run in EARLIER.get(row["row"], []))
    return f"{spelled(found[0])} – {spelled(median(found))} – {spelled(found[-1])} ({len(found)})" if found else ""


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(value: float) -> str:
    return f"{value:.2f}×"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
