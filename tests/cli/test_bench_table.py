"""The report for people."""

from __future__ import annotations

from typing import Any

from refdiff.cli.bench_table import markdown_lines, text_lines


def row(name: str, title: str, unit: str, sides: dict[str, tuple[float, float]], **ratios: tuple[float, ...]) -> Any:
    """A row of two rounds: for each side its seconds and its rate, and ratios as median, low and high."""
    three = ("median", "low", "high")
    return {
        "row": name,
        "title": title,
        "unit": unit,
        "sides": {side: {"seconds": [s, s], "rate": dict.fromkeys(three, rate)} for side, (s, rate) in sides.items()},
        "against": {
            side: {"ratio": dict(zip(three, ratio, strict=True)), "difference": None} for side, ratio in ratios.items()
        },
        "ceiling": None,
        "error": None,
    }


def report(**changes: Any) -> dict[str, Any]:
    """What a run of two rows, one of them beside two others, writes as JSON."""
    sides = {"refdiff": (0.5, 20.0), "transformers": (1.0, 10.0), "stored": (0.25, 40.0)}
    ratios = {"transformers": (2.0, 1.5, 2.5), "stored": (0.5, 0.5, 0.5)}
    decode = row("decode:128", "decode 128", "tok/s", sides, **ratios)
    share = {"refdiff": {"median": 0.8, "low": 0.7, "high": 0.9}}
    decode["ceiling"] = {"kind": "gemv", "rates": [25e9, 25e9], "share": share, "doubtful": []}
    sides = {"refdiff": (0.5, 0.5), "transformers": (4.0, 4.0)}
    cold = row("cold", "start to first token", "s", sides, transformers=(8.0, 7.0, 9.0))
    return {
        "machine": {
            "processor": "A Processor",
            "cores": 2,
            "threads": 1,
            "memory_bytes": 25_000_000_000,
            "system": "Linux x86_64",
            "blas": "openblas 0.3",
            "versions": {"refdiff": "1.2.3", "numpy": "2.4.6"},
        },
        "model": {"name": "small", "parameters": 1234567},
        "settings": {
            "dtype": "float32",
            "backend": "numpy",
            "pairs": 2,
            "decoded_tokens": 4,
            "looked_up_tokens": 20,
            "training_batch": [16, 256],
        },
        "rows": [cold, decode],
        **changes,
    }


def test_lines_of_80_columns() -> None:
    assert text_lines(report()) == [
        "                                  refdiff     the other    ratio        spread",
        "start to first token               0.50 s        4.00 s    8.00×     7.00–9.00",
        "decode 128, transformers       20.0 tok/s    10.0 tok/s    2.00×     1.50–2.50",
        "decode 128, stored             20.0 tok/s    40.0 tok/s    0.50×     0.50–0.50",
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
        "| decode 128, transformers | 20.0 tok/s | 10.0 tok/s | **2.00×** (1.50–2.50) "
        "| refdiff 80 % of gemv (25.0 GB/s) |",
        "| decode 128, stored | 20.0 tok/s | 40.0 tok/s | **0.50×** (0.50–0.50) | |",
    ]


def test_failures_are_said_under_their_row() -> None:
    cold, decode = report()["rows"]
    failed = {**decode, "sides": {}, "against": {}, "ceiling": None, "error": "a long reason, " * 10}
    cold["against"]["transformers"]["difference"] = "token 3 of row 0 is 5 here and 6 there"
    said = "FAILED: not the same as transformers: token 3 of row 0 is 5 here and 6 there"
    lines = text_lines(report(rows=[cold, failed]))
    assert lines[2:4] == [f"  {said}", "decode 128                         failed"]
    assert lines[4].startswith("  FAILED: a long reason, a long")
    assert max(map(len, lines)) < 80
    assert markdown_lines(report(rows=[cold]))[2].endswith(f"| {said} |")
