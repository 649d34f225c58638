"""The flags of `refdiff bench`."""

from __future__ import annotations

from typing import Any

from refdiff.cli.flags import Number, add_common

LIKE = ("kajuma/DiffLlama-0.3B-handcut", "kajuma/DiffLlama-1B", "tiny")
PEERS = ("transformers", "onnxruntime", "numpy", "stored")
PRODUCTS_ONLY = ("onnxruntime", "numpy")

EXAMPLES = """
examples:
  refdiff bench --like kajuma/DiffLlama-0.3B-handcut --against transformers
  refdiff bench -m path/to/checkpoint --rows prefill:512,decode:2048x4
"""


def add_bench(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "bench",
        examples=EXAMPLES,
        help="speed and memory on this machine",
        description="Measure prefill, decoding, loading, memory and training, alone or beside another library: each "
        "in a process of its own, in turns, so that what else the machine does befalls both. A ratio is the median of "
        "neighbours; above 1, refdiff is faster (of memory: below 1, it needs less). The share is of what NumPy's "
        "BLAS reads (gemv) or multiplies (sgemm) here, measured before and after each pair; what a side leaves out "
        "is not counted. Both sides must give the same tokens, or the exit status is 1.",
    )
    which = parser.add_argument_group("what")
    which.add_argument(
        "-m", "--model", metavar="PATH_OR_REPO", help="the checkpoint, a folder or a hub repo id (default: --like's)"
    )
    which.add_argument(
        "--like",
        choices=LIKE,
        metavar="MODEL",
        help="random weights in the dimensions of kajuma/DiffLlama-0.3B-handcut (4.94 GB), kajuma/DiffLlama-1B (2.78 "
        "GB) or tiny (0.5 MB) (default: tiny, where -m is not given)",
    )
    which.add_argument(
        "--folder",
        metavar="FOLDER",
        help="where --like's checkpoint is written, or found from an earlier run (default: a temporary folder)",
    )
    which.add_argument(
        "--against",
        action="append",
        choices=PEERS,
        help="measure beside this; onnxruntime and numpy have products only, numpy's by x @ weight.T; stored is "
        "refdiff with --weights stored; may be given several times (default: refdiff alone)",
    )
    which.add_argument(
        "--rows",
        metavar="ROW,…",
        help="cold, load, lookup, edit, prefill:TOKENS, decode:CONTEXT, memory:CONTEXT, product:TOKENS, train:3m or "
        "30m; xN after a number of tokens for N rows at once, as in decode:128x8 (default: some of each but train)",
    )
    which.add_argument("--train", action="store_true", help="measure training steps instead (default: off)")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--pairs", type=Number(int, 1), metavar="N", help="turns of each side that count (default: 5; --quick: 1)"
    )
    how.add_argument(
        "--quick", action="store_true", help="short rows, to see that it works; its numbers mean little (default: off)"
    )
    how.add_argument(
        "--threads",
        type=Number(int, 0, off="0 = all cores"),
        default=0,
        metavar="N",
        help="processor threads of every side (default: 0 = all cores, or what OMP_NUM_THREADS says)",
    )
    how.add_argument(
        "--backend",
        choices=("numpy", "cupy"),
        default="numpy",
        help="where every side computes: numpy = CPU, cupy = CUDA device, held against its own copies and products "
        "(default: numpy)",
    )
    how.add_argument(
        "--dtype",
        choices=("float32", "float64", "float16", "bfloat16"),
        default="float32",
        help="what every side computes in, whatever the file holds; with cupy the 16-bit types too, which "
        "--like's file then has: tokens may differ, and are not compared (default: float32)",
    )
    shown = parser.add_argument_group("output")
    shown.add_argument("--json", metavar="FILE", help="also write everything as JSON (default: off)")
    shown.add_argument("--markdown", action="store_true", help="print the table in Markdown (default: off)")
    shown.add_argument(
        "--plot",
        metavar="FILE",
        help="also draw time and memory against tokens and rows, .png, .svg or .pdf (default: off)",
    )
    shown.add_argument("-q", "--quiet", action="store_true", help="no progress (default: off)")
    add_common(shown)
