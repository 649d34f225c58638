"""The report for people."""

from __future__ import annotations

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


def test_failures_are_said_under_their_row() -> None:
    cold, product = report()["rows"]
    failed = {**product, "sides": {}, "against": {}, "ceiling": None, "error": "a long reason, " * 10}
    cold["against"]["transformers"]["difference"] = "token 3 of row 0 is 5 here and 6 there"
    said = "FAILED: not the same as transformers: token 3 of row 0 is 5 here and 6 there"
    lines = text_lines(report(rows=[cold, failed]))
    assert lines[2:4] == [f"  {said}", "product, 8 tokens                  failed"]
    assert lines[4].startswith("  FAILED: a long reason, a long")
    assert max(map(len, lines)) < 80
    assert markdown_lines(report(rows=[cold]))[2].endswith(f"| {said} |")
