"""`refdiff bench`: measure speed and memory on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.cli.flags import MODEL, Number, UsageError, add_backend, add_common, add_dtype, add_threads
from refdiff.cli.loading import fetch
from refdiff.cli.output_files import check_place
from refdiff.cli.parser import Parser
from refdiff.cli.terminal import note, progress_bar

if TYPE_CHECKING:
    from refdiff.bench.rows import BenchRow


LIKE = ("kajuma/DiffLlama-0.3B-handcut", "kajuma/DiffLlama-1B", "tiny")
PEERS = ("transformers", "stored")
QUICK: dict[str, Any] = {"steps": 4, "lookup_tokens": 20, "min_seconds": 0.0, "pause": 0.0, "batch": 2, "context": 32}


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Measure prompts, decoding, loading, memory and training, alone or beside another library. Each side runs in a "
        "process of its own, and they take turns, so that other load on the machine affects both alike."
    )
    parser.examples = """
refdiff bench --like tiny --quick
refdiff bench --like kajuma/DiffLlama-0.3B-handcut --against transformers
refdiff bench -m path/to/checkpoint --rows prefill:512,decode:2048x4
"""
    which = parser.add_argument_group("what")
    which.add_argument("-m", "--model", metavar=MODEL, help="folder or hub repo (default: that of --like)")
    which.add_argument("--like", choices=LIKE, metavar="MODEL", help="new random weights of its sizes (default: tiny)")
    which.add_argument("--against", action="append", choices=PEERS, metavar="NAME", help="other side")
    which.add_argument("--rows", metavar="ROW,…", help="rows to measure (default: some, none of train)")
    how = parser.add_argument_group("how")
    how.add_argument("--pairs", type=Number(int, 1), metavar="N", help="repetitions per side (default: 5, --quick 1)")
    how.add_argument("--quick", action="store_true", help="short rows, to see that it works")
    add_threads(how)
    add_backend(how)
    add_dtype(how, ("float32", "float64", "float16", "bfloat16"), "type of every side")
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write everything as JSON")
    output.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    add_common(output)
    parser.notes = [
        "A ratio is the median over the repetitions. A ratio above 1 means that refdiff is faster; in rows of memory, "
        "one below 1 means that it needs less. The share is of what NumPy's BLAS reads (gemv) or multiplies (sgemm) on "
        "this machine, measured before and after each pair. "
        "The row lookup copies a prompt by prompt lookup; passes are how often the model ran. "
        "Exit status: 1 where a row failed, or the sides generated different tokens.",
        f"--like is {LIKE[0]} (4.94 GB), {LIKE[1]} (2.78 GB) or {LIKE[2]} (0.5 MB).",
        f"--against is {' or '.join(PEERS)}, or both; stored is refdiff with --weights stored.",
        "--rows: cold, load, lookup, prefill:TOKENS, decode:CONTEXT, memory:CONTEXT, train:3m, train:30m; "
        " xN after a number of tokens for N sequences at once, as in decode:128x8.",
        "--dtype float16 and bfloat16 need --backend cupy; tokens may then differ, and are not compared.",
    ]


def run(args: argparse.Namespace) -> int:
    """Measure and print the table; return 1 if a row failed, or the sides generated different tokens."""
    from refdiff import arrays
    from refdiff.backends.numpy.thread_pool import default_threads
    from refdiff.bench import report, runner
    from refdiff.bench.sides import SIXTEEN_BITS, BenchSettings
    from refdiff.bench.sizes import checkpoint
    from refdiff.model import weights
    from refdiff.model.config import DiffLlamaConfig

    rows = _rows(args)
    _check_flags(args, rows)
    if args.backend == "cupy":
        arrays.backend("cupy")  # before a checkpoint is written for nothing
    like = None
    kept = None if args.model is None else str(fetch(args.model, args))
    if kept is None and any(row.kind.needs_model for row in rows):
        like = args.like or "tiny"
        if not args.quiet:
            note(f"refdiff bench: random weights in the dimensions of {like}")
    results: list[dict[str, Any]] = []
    with checkpoint(like, kept, args.dtype if args.dtype in SIXTEEN_BITS else None) as folder:
        if folder is not None:  # what is broken is said once, and not by every row
            config = DiffLlamaConfig.from_pretrained(folder)
            weights.load(folder, config, "DiffLlamaForCausalLM", stored=True, deferred=True)
        settings = BenchSettings(
            folder,
            args.threads or default_threads(),
            args.dtype,
            args.backend,
            tuple(dict.fromkeys(args.against or ())),
            args.pairs or (1 if args.quick else 5),
            **(QUICK if args.quick else {}),
        )
        try:
            with progress_bar(quiet=args.quiet, total=len(rows), unit="row") as bar:
                for entry in runner.run(rows, settings, lambda row, side: bar.set_postfix_str(f"{row.title}: {side}")):
                    results.append(entry)
                    bar.set_postfix_str("", refresh=False)
                    bar.update(len({done["row"] for done in results}) - bar.n)  # some rows give two
                    if bar.disable and not args.quiet:
                        note(f"refdiff bench: {entry['title']}: {entry['error'] or 'measured'}")
        finally:
            if results:  # after Ctrl-C too
                model = report.describe_model(like, folder, args.model)
                _show(args, report.report(results, settings, model=model))
    return 1 if any(map(report.failed, results)) else 0


def _rows(args: argparse.Namespace) -> list[BenchRow]:
    """Return the rows to measure, or raise `UsageError` if they are unknown."""
    from refdiff.bench import rows as known

    if args.rows is None:
        return known.QUICK if args.quick else known.ALL
    try:
        return known.parse_rows(args.rows)
    except ValueError as error:
        raise UsageError(f"--rows: {error}") from None


def _check_flags(args: argparse.Namespace, rows: list[BenchRow]) -> None:
    """Raise `UsageError` for options that contradict each other or the rows, and for files that cannot be written."""
    from refdiff.bench.sides import SIXTEEN_BITS

    if args.json is not None:
        check_place("--json", Path(args.json))
    if args.dtype in SIXTEEN_BITS and args.backend != "cupy":
        raise UsageError(f"--dtype: got {args.dtype}, expected float32 or float64 with --backend numpy")
    if args.dtype in SIXTEEN_BITS and any(row.name == "train" for row in rows):
        raise UsageError(f"--dtype: got {args.dtype}, expected float32 or float64 for training")
    if args.model is not None and args.like is not None:
        raise UsageError("-m, --like: got both, expected one of them")


def _show(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Print the table, then write the file, so that an error of the disk hides no results."""
    from refdiff.cli.bench_table import markdown_lines, text_lines
    from refdiff.files import write_atomically

    lines = markdown_lines(report) if args.markdown else text_lines(report)
    sys.stdout.write("\n".join(lines) + "\n")
    if args.json is not None:
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        write_atomically(args.json, text.encode())
