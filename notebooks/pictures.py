"""Makes the pictures of the README and the pictures and tables of the guides.

    python notebooks/pictures.py             # writes notebooks/pictures/*.png, and the tables into their pages
    python notebooks/pictures.py needle      # one of the pictures
    python notebooks/pictures.py --check     # writes nothing; exit 1 if a fresh run draws or counts something else

Each picture is there twice, in the ink of a light page and in that of a dark one. A file holds, beside its pixels, what
it draws (drawn.py); that is compared, by compare.py, as it is for notebooks. Speed is not measured here: what
`refdiff bench --json` wrote stands in data/speed.json, what `--against stored` did in data/speed_stored.json, and what
`--rows train:3m,train:30m` did in data/speed_train.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from aims import AIMS, STORED_AIMS, TRAINING_AIM, met, short_of, short_of_stored  # noqa: E402  (a folder of scripts)
from compare import differences  # noqa: E402
from drawn import drawn  # noqa: E402
from sketches import article_draw, in_ink  # noqa: E402
from speed_plot import draw  # noqa: E402

from refdiff import layers, oracle, viz  # noqa: E402
from refdiff.bench.rows import ALL, BenchRow, parse_rows  # noqa: E402
from refdiff.cli.bench_table import markdown_lines  # noqa: E402
from refdiff.oracle import deviations  # noqa: E402
from refdiff.oracle.budget.statistics import LIMITS, root_mean_square  # noqa: E402
from refdiff.viz.appearance import BLUE, INK, ORANGE, new_figure  # noqa: E402

FOLDER = HERE / "pictures"
GUIDES = HERE / "reference" / "guides"
SELFTEST = HERE.parent / "tests" / "oracle" / "selftest" / "results.md"
INKS = {"light": "#57606a", "dark": "#a9b1ba"}
SPEED, STORED, TRAINED = (HERE / "data" / f"{name}.json" for name in ("speed", "speed_stored", "speed_train"))
SHOWN = (
    "decode:128", "decode:2048", "decode:8192", "prefill:512", "prefill:8192", "decode:128x4", "decode:128x16",
    "lookup", "cold", "memory:2048",
)  # fmt: skip
"""Rows of the speed table that are not folded."""
BEGIN, END = "<!-- {}: python notebooks/pictures.py -->\n", "<!-- end -->"


def needle() -> Any:
    """One query and 48 keys, of which one matters; both maps share the rest. As in notebook 03 and the article."""
    S, d, at = 48, 16, 30
    query, noise, other = article_draw(S, d)
    keys_1, keys_2 = noise.copy(), 0.99 * noise + np.sqrt(1 - 0.99**2) * other
    keys_1[at] += 0.6 * query
    first, second = (
        layers.attention_weights(query[None, None, None], k[None, None], causal=False)[0, 0, 0]
        for k in (keys_1, keys_2)
    )
    rows = {"A₁": first, "A₂": second, "A₁ − 0.75 A₂": first - 0.75 * second}
    figure = new_figure(8.0, 3.6)
    grid = figure.subplots(len(rows), 1, sharex=True, sharey=True)
    for axes, (name, row) in zip(grid, rows.items(), strict=True):
        viz.appearance.style_axes(axes)
        axes.bar(range(S), row, 0.7, color=[ORANGE if s == at else BLUE for s in range(S)])
        axes.axhline(0, color=INK, linewidth=0.5)
        share = viz.attention_to(row[None], {"needle": [at]})["needle"]
        axes.set_title(f"{name}: weight {row[at]:.2f} at key {at}, {share:.0%} of Σ|weight|", fontsize=10, loc="left")
        axes.title.set_color(INK)
    grid[-1].set_xlabel("key")
    return figure


def speed() -> Any:
    """How time and memory grow with tokens and rows."""
    return draw(_speed())


def _speed() -> dict[str, Any]:
    report: dict[str, Any] = json.loads(SPEED.read_text(encoding="utf-8"))
    return report


PICTURES: dict[str, Callable[[], Any]] = {"needle": needle, "speed": speed}


def budgets() -> str:
    """The table: what a right kernel may be off by, of the size of a row, on inputs of several kinds."""
    spec = oracle.Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=2)
    kinds = {"natural": "ordinary", "cancellation": "maps alike, λ near 1", "tiny_values": "tiny values"}
    known = {deviation.name for deviation in deviations(spec, "dense")}
    lines = [
        f"| a kernel that rounds to | {' | '.join(kinds.values())} | hidden, of {len(known)} deviations |",
        "|---|---|---|---|---|",
    ]
    for dtype in ("float32", "float16", "bfloat16"):
        cells, hidden = [], known
        for profile in (*kinds, "discriminating"):
            allowed = []
            for case in oracle.cases(profile, spec=spec, dtype=dtype):
                budget = oracle.budget(spec, case.inputs, dtype)
                size = root_mean_square(budget.expected["out"])
                allowed += list((LIMITS.row * budget.rows["out"])[size > 0] / size[size > 0])
                hidden = hidden & {deviation.name for deviation in case.blind_to}
            cells.append(_written(float(np.median(allowed))))
        lines.append(f"| {dtype} | {' | '.join(cells[: len(kinds)])} | {len(hidden)} |")
    return "\n".join(lines) + "\n"


def speeds() -> str:
    """The tables of `refdiff bench`, all but ten rows folded, and what they fall short of."""
    report = _speed()
    order = list(AIMS)
    rows = sorted(report["rows"], key=lambda row: order.index(row["row"]) if row["row"] in AIMS else len(order))
    first, others = ([row for row in rows if (row["row"] in SHOWN) == shown] for shown in (True, False))
    lines = [
        *markdown_lines({**report, "rows": first}),
        *("", *_folded("Other rows, 16-bit weights, and training")),
        *_as_before(report, markdown_lines({**report, "rows": others})),
    ]
    missing = _missing((*parse_rows(",".join(AIMS)), *ALL), rows)
    short = [said for row in rows for said in short_of(row, AIMS.get(row["row"]))]
    for file, wanted, said_of, suffix in (
        (STORED, parse_rows(",".join(STORED_AIMS)), short_of_stored, " as stored"),
        (TRAINED, parse_rows("train:3m,train:30m"), lambda row: short_of(row, TRAINING_AIM), ""),
    ):
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": []}
        lines += ["", *_as_before(report, markdown_lines(found))] if found["rows"] else []
        missing += [title + suffix for title in _missing(wanted, found["rows"])]
        short += [said for row in found["rows"] for said in said_of(row)]
    reached = [said for row in rows for said in met(row, AIMS.get(row["row"]))]
    lines += [
        *("", "</details>", "", "### Targets", ""),
        f"{len(short)} of {len(short) + len(reached)} targets are missed.",
        *("", *_folded("The targets, and what was measured")),
        "| misses its target | measured | target | required share | without the losses below | earlier runs |",
        "|---|---|---|---|---|---|",
        *(short or ["| nothing |"]),
    ]
    lines += [
        "",
        "| meets its target | measured | target | earlier runs |",
        "|---|---|---|---|",
        *(reached or ["| nothing |"]),
        *("", "</details>"),
    ]
    if missing:
        lines += ["", f"Not measured: {'; '.join(dict.fromkeys(missing))}."]
    return "\n".join(lines) + "\n"


def _folded(title: str) -> list[str]:
    """The lines that begin a part of a page which a reader opens."""
    return ["<details>", f"<summary>{title}</summary>", ""]


def _as_before(report: dict[str, Any], lines: list[str]) -> list[str]:
    """Return a table without its last words, on machine, versions and commit, where they are those of `report`."""
    words = markdown_lines(report)[-1].partition(". ")[2]
    told = lines[-1].removesuffix(words)
    return lines if told == lines[-1] else [*lines[:-1], f"{told}Machine, versions and commit as above."]


def _missing(wanted: Iterable[BenchRow], rows: list[dict[str, Any]]) -> list[str]:
    """The titles of rows that are wanted and not there."""
    measured = {row["row"] for row in rows}
    return [row.title for row in wanted if row.spelled not in measured]


def rules() -> str:
    """What each rule of the oracle's selftest found and refused, from the selftest's own page."""
    page = SELFTEST.read_text(encoding="utf-8")
    sources = re.findall(r"^\| `(.+?)` \| .+ \| (\[.+?\]\(.+?\)) \|$", page, re.MULTILINE)
    names = {rule: f"{source}, `{rule}`" for rule, source in sources} | {"rows": "refdiff, by rows"}
    lines = [
        "| rule | identifiable mistakes found | of all mistakes | correct kernels refused | real kernels refused |",
        "|---|---|---|---|---|",
    ]
    for line in page.split("## By rule\n\n")[1].split("\n\n")[0].splitlines()[2:]:
        rule, found, every, own, real, _ = (cell.strip() for cell in line.strip("|").split("|"))
        _, of, share = re.fullmatch(r"([\d,]+) of ([\d,]+) \((.+)\)", found).groups()
        lines.append(f"| {names.get(rule, f'`{rule}`')} | {share} of {of} | {every} | {own} | {real} |")
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[], str]] = {"budgets": budgets, "rules": rules, "speeds": speeds}
PAGES = {"budgets": GUIDES / "kernels.md", "rules": GUIDES / "kernels.md", "speeds": GUIDES / "performance.md"}
"""Where each table stands, between `BEGIN` and `END`."""


def _written(share: float) -> str:
    return f"{np.format_float_positional(100 * share, 2, fractional=False, trim='-')} %"


def save(name: str, figure: Any) -> None:
    """Write a picture for a light page and for a dark one, with what it draws."""
    FOLDER.mkdir(exist_ok=True)
    said = json.dumps(drawn(figure), ensure_ascii=True)
    for page, ink in INKS.items():
        in_ink(figure, ink)
        metadata = {"Software": None, "Description": said}
        figure.savefig(FOLDER / f"{name}-{page}.png", dpi=120, metadata=metadata, transparent=True)


def stored(name: str) -> dict[str, list[Any]]:
    """What the files of a picture say that they draw; nothing for one that is not there."""
    from PIL import Image

    said = {}
    for page in INKS:
        if (path := FOLDER / f"{name}-{page}.png").exists():
            with Image.open(path) as image:
                said[page] = json.loads(image.info["Description"])
    return said


def stored_table(name: str) -> str:
    """A table as it stands on its page."""
    text = PAGES[name].read_text(encoding="utf-8")
    return text.partition(BEGIN.format(name))[2].partition(END)[0].strip("\n") + "\n"


def wrong_with(name: str, axes: list[Any]) -> list[str]:
    """Say where the files of a picture differ from what is drawn now."""
    found = stored(name)
    wrong = [f"{name}-{page}.png is not there" for page in INKS if page not in found]
    fresh = _shown({"metadata": {"drawn": {"axes": axes}}})
    for page, old in found.items():
        why = differences(_shown({"metadata": {"drawn": {"axes": old}}}), fresh)
        wrong += [f"{name}-{page}.png: {one}" for one in why]
    return wrong


def _shown(output: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(cells=[{"outputs": [{"output_type": "display_data", **output}]}])


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures and the tables, or check them."""
    everything = [*PICTURES, *TABLES]
    parser = argparse.ArgumentParser("python notebooks/pictures.py", description="Make pictures and tables.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(everything)} (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing, compare with a fresh run (default: off)")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(everything):
        parser.error(f"no picture is called {', '.join(sorted(unknown))}; there are {', '.join(everything)}")
    wrong = []
    for name in args.names or everything:
        if name in TABLES:
            old, new, page = stored_table(name), TABLES[name](), PAGES[name]
            if args.check:
                wrong += [f"{page.name}: {why}" for why in differences(_shown({"text": old}), _shown({"text": new}))]
            else:
                begin = BEGIN.format(name)
                before, found, rest = page.read_text(encoding="utf-8").partition(begin)
                _, ended, after = rest.partition(END)
                if not (found and ended):
                    parser.error(f"{page.name} has no {begin.strip()} … {END.strip()}")
                page.write_text(f"{before}{begin}{new}{END}{after}", encoding="utf-8")
            continue
        figure = PICTURES[name]()
        if args.check:
            wrong += wrong_with(name, drawn(figure))
        else:
            save(name, figure)
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
