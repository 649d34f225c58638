"""The report for people."""

from __future__ import annotations

import itertools

from refdiff.cli.bench import PEERS
from refdiff.cli.bench_table import markdown_lines, text_lines
from tests.bench.fakes import report


def test_lines_of_80_columns() -> None:
    assert text_lines(report()) == [
        "                                  refdiff     the other    ratio        spread",
        "start to first token               0.50 s        4.00 s    8.00×     7.00–9.00",
        "product, 8 tokens, torch        20.0 GB/s     10.0 GB/s    2.00×     1.50–2.50",
        "product, 8 tokens, ORT          20.0 GB/s     40.0 GB/s    0.50×     0.50–0.50",
        "  refdiff 80 % of gemv (25.0 GB/s)",
        "",
        "small, 1,234,567 parameters, float32, median of 2 interleaved pairs. A",
        "Processor, 2 cores, 25 GB, Linux x86_64; 1 thread; openblas 0.3; refdiff 1.2.3,",
        "NumPy 2.4.6.",
    ]


def test_markdown() -> None:
    assert markdown_lines(report())[:5] == [
        "| | refdiff | the other | ratio (spread) | share of the ceiling |",
        "|---|---|---|---|---|",
        "| start to first token | 0.50 s | 4.00 s | **8.00×** (7.00–9.00) | |",
        "| product, 8 tokens, torch | 20.0 GB/s | 10.0 GB/s | **2.00×** (1.50–2.50) "
        "| refdiff 80 % of gemv (25.0 GB/s) |",
        "| product, 8 tokens, ORT | 20.0 GB/s | 40.0 GB/s | **0.50×** (0.50–0.50) | |",
    ]
    assert markdown_lines(report())[5:] == [
        "",
        "small, 1,234,567 parameters, float32, median of 2 interleaved pairs. "
        "A Processor, 2 cores, 25 GB, Linux x86_64; 1 thread; openblas 0.3; refdiff 1.2.3, NumPy 2.4.6.",
    ]


def test_every_peer_has_a_name_that_fits() -> None:
    _, product = report()["rows"]
    ours, theirs = product["sides"]["refdiff"], product["sides"]["transformers"]
    beside, share = product["against"]["transformers"], {"median": 0.8, "low": 0.7, "high": 0.9}
    for pair in itertools.pairwise(PEERS):
        ceiling = {**product["ceiling"], "share": dict.fromkeys(pair, share)}
        sides, against = {"refdiff": ours, **dict.fromkeys(pair, theirs)}, dict.fromkeys(pair, beside)
        lines = text_lines(report(rows=[{**product, "sides": sides, "against": against, "ceiling": ceiling}]))
        assert len({line[:27] for line in lines[1:3]}) == 2
        assert max(map(len, lines)) < 80


def test_a_share_of_more_than_there_is_is_marked() -> None:
    _, product = report()["rows"]
    ceiling = {**product["ceiling"], "share": {"refdiff": {"median": 1.2, "low": 1.0, "high": 1.3}}}
    shown = markdown_lines(report(rows=[{**product, "ceiling": {**ceiling, "doubtful": ["refdiff"]}}]))[2]
    assert "| refdiff 120 % of gemv (25.0 GB/s); DOUBTFUL: refdiff above 105 % |" in shown
    ceiling |= {"read": [28e9, 28e9], "doubtful": ["refdiff"]}
    shown = markdown_lines(report(rows=[{**product, "ceiling": ceiling}]))[2]
    assert "(25.0 GB/s); DOUBTFUL: refdiff above 105 % of what can be read (28.0 GB/s) |" in shown


def test_passes_through_the_model_are_told() -> None:
    cold, _ = report()["rows"]
    sides = {name: {**side, "passes": [count]} for (name, side), count in zip(cold["sides"].items(), (13, 12))}  # noqa: B905
    assert (
        "| refdiff 13, transformers 12 passes through the model |"
        in markdown_lines(report(rows=[{**cold, "sides": sides}]))[2]
    )


def test_what_is_measured_once_is_said_to_be() -> None:
    cold, product = report()["rows"]
    times = {name: {"rate": side["rate"], "bytes": [3e9, 3e9]} for name, side in cold["sides"].items()}
    once = {name: {"rate": side["rate"], "bytes": [3e9]} for name, side in cold["sides"].items()}
    memory = {**cold, "title": "training memory, 3m", "unit": "B"}
    several = report(rows=[{**memory, "sides": times}, product])
    assert "median of 2 interleaved pairs. A" in markdown_lines(several)[-1]
    single = report(rows=[{**memory, "sides": once}, product])
    assert "median of 2 interleaved pairs, measured once: training memory, 3m. A" in markdown_lines(single)[-1]
    single = report(rows=[{**memory, "sides": once}])
    single["settings"]["pairs"] = 1
    assert "median of 1 interleaved pair. A" in markdown_lines(single)[-1]
    more = {name: {**side, "seconds": [1.0] * 9} for name, side in cold["sides"].items()}
    mixed = report(rows=[{**cold, "sides": more}, {**memory, "sides": once}, product])
    caption = "median of 2 interleaved pairs (9 of start to first token), measured once: training memory, 3m. A"
    assert caption in markdown_lines(mixed)[-1]


def test_the_commit_of_each_row_is_told() -> None:
    cold, product = report()["rows"]
    caption = markdown_lines(report(rows=[{**cold, "commit": "abc1234"}, product]))[-1]
    assert caption.endswith("NumPy 2.4.6; commit abc1234.")
    rows = [{**cold, "commit": commit} for commit in ("abc1234", "def5678", "def5678")]
    assert markdown_lines(report(rows=rows))[-1].endswith("; commit def5678 (start to first token: abc1234).")
    commits = ("60d453f", "60d453f", "60d453f", "50846a5", "50846a5", "abc1234")
    titles = ("load", "cold", "decode 128", "prefill 8192", "memory 8192", "prompt lookup")
    rows = [{**cold, "title": title, "commit": commit} for title, commit in zip(titles, commits, strict=True)]
    assert markdown_lines(report(rows=rows))[-1].endswith(
        "; commit 60d453f (prefill 8192, memory 8192: 50846a5; prompt lookup: abc1234)."
    )


def test_refdiff_alone_has_no_other_column() -> None:
    cold, _ = report()["rows"]
    alone = report(rows=[{**cold, "against": {}}], model=None)
    assert text_lines(alone)[:2] == [
        "                                  refdiff",
        "start to first token               0.50 s",
    ]
    assert markdown_lines(alone)[:3] == [
        "| | refdiff | share of the ceiling |",
        "|---|---|---|",
        "| start to first token | 0.50 s | |",
    ]
    assert text_lines(alone)[3].startswith("float32, median of")


def test_one_other_is_named() -> None:
    assert "transformers" in text_lines(report(rows=report()["rows"][:1]))[0]


def test_failures_are_said_under_their_row() -> None:
    cold, product = report()["rows"]
    failed = {**product, "sides": {}, "against": {}, "ceiling": None, "error": "a long reason, " * 10}
    cold["against"]["transformers"]["difference"] = "token 3 of row 0 is 5 here and 6 there"
    lines = text_lines(report(rows=[cold, failed]))
    assert lines[2] == "  FAILED: not the same as transformers: token 3 of row 0 is 5 here and 6 there"
    assert lines[3] == "product, 8 tokens                  failed"
    assert lines[4].startswith("  FAILED: a long reason, a long")
    assert max(map(len, lines)) < 80
    assert markdown_lines(report(rows=[cold]))[2].endswith(
        "| FAILED: not the same as transformers: " + "token 3 of row 0 is 5 here and 6 there |"
    )


def test_numbers_have_three_digits() -> None:
    cold, _ = report()["rows"]
    shown = []
    for value, unit in ((0.01234, "s"), (0.1234, "s"), (12.34, "tok/s"), (1234.5, "tok/s"), (5.1e9, "B")):
        sides = {"refdiff": {"rate": {"median": value, "low": value, "high": value}}}
        (line,) = text_lines(report(rows=[{**cold, "against": {}, "sides": sides, "unit": unit}]))[1:2]
        shown.append(line[27:].strip())
    assert shown == ["0.0123 s", "0.12 s", "12.3 tok/s", "1234 tok/s", "5.10 GB"]
