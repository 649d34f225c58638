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
    assert markdown_lines(report())[5:] == [
        "",
        "small, 1,234,567 parameters, float32, median of 2 interleaved pairs. "
        "A Processor, 2 cores, 25 GB, Linux x86_64; 1 thread; openblas 0.3; refdiff 1.2.3, NumPy 2.4.6.",
    ]


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


def test_the_commit_of_each_row_is_told() -> None:
    cold, product = report()["rows"]
    caption = markdown_lines(report(rows=[{**cold, "commit": "abc1234"}, product]))[-1]
    assert caption.endswith("NumPy 2.4.6; commit abc1234.")
    titled = {"load": "50846a5", "cold": "50846a5", "lookup": "60d453f", "decode 2": "50846a5", "prefill 8": "60d453f"}
    rows = [{**cold, "title": title, "commit": commit} for title, commit in titled.items()]
    assert markdown_lines(report(rows=rows))[-1].endswith("; commit 50846a5 (lookup, prefill 8: 60d453f).")


def test_numbers_have_three_digits() -> None:
    cold, _ = report()["rows"]
    shown = []
    for value, unit in ((0.01234, "s"), (0.1, "s"), (12.34, "tok/s"), (1234.5, "tok/s"), (5.1e9, "B")):
        sides = {"refdiff": {"rate": {"median": value, "low": value, "high": value}}}
        (line,) = text_lines(report(rows=[{**cold, "against": {}, "sides": sides, "unit": unit}]))[1:2]
        shown.append(line[27:].strip())
    assert shown == ["0.0123 s", "0.10 s", "12.3 tok/s", "1234 tok/s", "5.10 GB"]


def test_one_other_is_named_and_refdiff_alone_has_no_other_column() -> None:
    cold, _ = report()["rows"]
    assert "transformers" in text_lines(report(rows=[cold]))[0]
    alone = report(rows=[{**cold, "against": {}}], model=None)
    assert text_lines(alone)[:2] == ["refdiff".rjust(41), "start to first token".ljust(27) + "0.50 s".rjust(14)]
    assert markdown_lines(alone)[0] == "| | refdiff | share of the ceiling |"
    assert text_lines(alone)[3].startswith("float32, median of")


def test_what_was_measured_another_number_of_times_is_said() -> None:
    cold, product = report()["rows"]
    rates = {name: {"rate": side["rate"]} for name, side in cold["sides"].items()}
    once = {**cold, "title": "training memory, 3m", "unit": "B"}
    once["sides"] = {name: {**side, "bytes": [3e9]} for name, side in rates.items()}
    more = {**cold, "sides": {name: {**side, "seconds": [1.0] * 9} for name, side in rates.items()}}
    mixed = markdown_lines(report(rows=[more, once, product]))[-1]
    assert "pairs (9 of start to first token), measured once: training memory, 3m. A" in mixed
    single = report(rows=[once])
    single["settings"]["pairs"] = 1
    assert "median of 1 interleaved pair. A" in markdown_lines(single)[-1]


def test_rows_of_the_oracle_have_a_type_a_clock_and_a_count_of_their_own() -> None:
    cold, product = report()["rows"]
    ours = {"refdiff": {"rate": cold["sides"]["refdiff"]["rate"], "seconds": [1.0] * 5}}
    judged = {**cold, "row": "check:1024x32", "against": {}, "sides": ours}
    alone = markdown_lines(report(rows=[judged, {**judged, "row": "diagnose:256x4"}], model=None))[-1]
    assert alone.startswith("check and diagnose: bfloat16, processor time, median of 5 runs. A Processor")
    mixed = markdown_lines(report(rows=[cold, product, judged], model=None))[-1]
    assert mixed.startswith(
        "float32, median of 2 interleaved pairs; check: bfloat16, processor time, median of 5 runs."
    )


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
