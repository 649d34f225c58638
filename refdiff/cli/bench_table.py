"""The report of `refdiff bench` for people: lines of 80 columns, or Markdown."""

from __future__ import annotations

import statistics
import textwrap
from typing import Any

from refdiff.cli.terminal import size

_WIDTH = 79


def text_lines(report: dict[str, Any]) -> list[str]:
    """Return the table in 80 columns; a row with two other sides takes two lines."""
    other = _other_side(report)
    lines = [_columns("", "refdiff", other, *(("ratio", "spread") if other else ("", "")))]
    for row in report["rows"]:
        lines += [_columns(*cells) for cells in _rows(row)]
        for remark in _remarks(row):
            lines += textwrap.wrap(remark, _WIDTH, initial_indent="  ", subsequent_indent="  ")
        for failure in _failures(row):
            lines += textwrap.wrap(failure, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    return [*lines, "", *textwrap.wrap(_caption(report), _WIDTH)]


def markdown_lines(report: dict[str, Any]) -> list[str]:
    """Return the table in Markdown, with a description of the machine."""
    other = _other_side(report)
    titles = ["", "refdiff", *([other, "ratio (spread)"] if other else []), "share of the ceiling"]
    lines = [_cells(titles), _cells(["---"] * len(titles), "")]
    for row in report["rows"]:
        remarks = "; ".join([*_remarks(row), *_failures(row)])
        for title, ours, theirs, ratio, spread in _rows(row):
            beside = [theirs, f"**{ratio}** ({spread})" if ratio else ""] if other else []
            lines.append(_cells([title, ours, *beside, remarks]))
            remarks = ""  # once for each row, as in `text_lines`
    return [*lines, "", _caption(report)]


def _other_side(report: dict[str, Any]) -> str:
    """Return the name of the other side's column."""
    names = {name for row in report["rows"] for name in row["against"]}
    return names.pop() if len(names) == 1 else "the other" if names else ""


def _columns(title: str, ours: str, theirs: str, ratio: str, spread: str) -> str:
    return f"{title:<27}{ours:>14}{theirs:>14}{ratio:>9}{spread:>14}".rstrip()


def _cells(cells: list[str], pad: str = " ") -> str:
    return "|" + "|".join(f"{pad}{cell}{pad}" if cell else " " for cell in cells) + "|"


def _rows(row: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return title, refdiff, the other, ratio and spread, beside each other side."""
    if row["error"]:
        return [(row["title"], "failed", "", "", "")]
    ours = _number(row["sides"]["refdiff"]["rate"]["median"], row["unit"])
    if not row["against"]:
        return [(row["title"], ours, "", "", "")]
    cells = []
    for name, entry in row["against"].items():
        theirs = _number(row["sides"][name]["rate"]["median"], row["unit"])
        ratio = entry["ratio"]
        spread = f"{ratio['low']:.2f}–{ratio['high']:.2f}"
        title = row["title"] if len(row["against"]) == 1 else f"{row['title']}, {name}"
        cells.append((title, ours, theirs, f"{ratio['median']:.2f}×", spread))
    return cells


def _remarks(row: dict[str, Any]) -> list[str]:
    """Return remarks about a row's numbers: shares of the ceiling, passes through the model."""
    passes = {name: statistics.median(side["passes"]) for name, side in row["sides"].items() if "passes" in side}
    counted = ", ".join(f"{name} {number:g}" for name, number in passes.items())
    return ([_share(row)] if row["ceiling"] else []) + ([f"{counted} passes through the model"] if passes else [])


def _share(row: dict[str, Any]) -> str:
    """Return the name of the ceiling, and each side's share of it."""
    ceiling = row["ceiling"]
    unit = _rate(ceiling["rates"], ceiling["kind"])
    shares = ", ".join(f"{name} {100 * s['median']:.0f} %" for name, s in ceiling["share"].items())
    doubt = ", ".join(ceiling["doubtful"])
    most = f" of what can be read ({_rate(ceiling['read'], 'read')})" if "read" in ceiling else ""
    return f"{shares} of {ceiling['kind']} ({unit})" + (f"; DOUBTFUL: {doubt} above 105 %{most}" if doubt else "")


def _rate(rates: list[float], kind: str) -> str:
    rate = statistics.median(rates) / 1e9
    return f"{rate:.1f} GB/s" if kind in ("gemv", "read", "copy") else f"{rate:.0f} GFLOP/s"


def _failures(row: dict[str, Any]) -> list[str]:
    failures = [row["error"]] if row["error"] else []
    failures += [
        f"not the same as {name}: {entry['difference']}"
        for name, entry in row["against"].items()
        if entry["difference"]
    ]
    return [f"FAILED: {failure}" for failure in failures]


def _number(value: float, unit: str) -> str:
    if unit == "B":
        return size(value)
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 4
    return f"{value:.{digits}f} {unit}"


def _caption(report: dict[str, Any]) -> str:
    settings, model = report["settings"], report["model"]
    what = f"{model['name']}, {model['parameters']:,} parameters, " if model else ""
    told = f"{settings['dtype']}, {_pairs(settings['pairs'], report['rows'])}"
    return f"{what}{told}. {_machine(report['machine'])}{_commits(report['rows'])}."


def _count(row: dict[str, Any]) -> int:
    """Return how often a row was measured, which is 0 where it failed."""
    return max((len(side.get("seconds") or side["bytes"]) for side in row["sides"].values()), default=0)


def _pairs(usual: int, rows: list[dict[str, Any]]) -> str:
    """Return a sentence on the number of pairs, and on rows with another number."""
    titles: dict[int, list[str]] = {}
    for row in rows:
        if (count := _count(row)) not in (0, usual):
            titles.setdefault(count, []).append(row["title"])
    others = [
        f", measured once: {'; '.join(names)}" if n == 1 else f" ({n} of {'; '.join(names)})"
        for n, names in sorted(titles.items(), reverse=True)
    ]
    return f"median of {usual} interleaved pair{'s' * (usual > 1)}{''.join(others)}"


def _commits(rows: list[dict[str, Any]]) -> str:
    """Return the commit of the rows: one, unless reports were joined."""
    commits = dict.fromkeys(row["commit"] for row in rows if row.get("commit"))
    return f"; commit {', '.join(commits)}" if commits else ""


def _machine(machine: dict[str, Any]) -> str:
    names = {"python": "Python", "numpy": "NumPy", "cupy": "CuPy", "cuda": "CUDA"}
    versions = ", ".join(f"{names.get(name, name)} {number}" for name, number in machine["versions"].items())
    memory = f", {machine['memory_bytes'] / 1e9:.0f} GB" if machine["memory_bytes"] else ""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    device = f"{machine['device']}; " if "device" in machine else ""
    processor = f"{device}{machine['processor']}, {cores}{memory}, {machine['system']}"
    return f"{processor}; {threads}; {machine['blas']}; {versions}"
