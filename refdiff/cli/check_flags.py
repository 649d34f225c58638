"""The flags of `refdiff check`."""

from __future__ import annotations

from typing import Any

from refdiff.cli.flags import Number, add_dask
from refdiff.cli.spec import add_spec


def add_check(commands: Any) -> None:
    """Add the command to the parser of all commands."""
    examples = """
examples:
  refdiff check --spec hf_diffllama --layer 3 mine.safetensors
  refdiff check --spec ms_v1 --set window=128 --print-spec mine.npz
  refdiff check --selftest --seeds 1
  refdiff check --selftest --seeds 20 --jobs 2 --keep runs --markdown
"""
    parser = commands.add_parser(
        "check",
        examples=examples,
        help="is a kernel's output right",
        description="Judge what a differential attention kernel, or a whole attention layer, computed. The file "
        "(safetensors or npz) holds its inputs (q, k, v, lambda_q1, ...; --inputs lists all) and what it computed: any "
        "of out, lse1, lse2, and with dout also dq, dk, dv, dlambda_q1, ... Exit status: 0 pass; 1 fail, or "
        "inconclusive: inputs on which right kernels differ too much, so that they show nothing; 2 trouble: a file, a "
        "shape, a spec or a flag that nothing can be judged by.",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="inputs and outputs of the kernel")
    add_spec(parser, "hf_diffllama")
    parser.add_argument(
        "--print-spec",
        action="store_true",
        help="print the whole spec as JSON, which --spec reads, and judge nothing (default: off)",
    )
    parser.add_argument(
        "--inputs", action="store_true", help="print what a FILE holds: every name and its shape (default: off)"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME_OR_FILE",
        default="auto",
        help="what the kernel rounds: float32, tf32, bfloat16 or float16; or a JSON file with the fields of a Recipe "
        "(default: auto = the type of q)",
    )
    parser.add_argument(
        "--diagnose", action="store_true", help="where it fails, name the mistake; takes seconds (default: off)"
    )
    parser.add_argument(
        "--selftest",
        action="store_true",
        help="test the tester on mutants and legal kernels, and print the table (default: off)",
    )
    parser.add_argument(
        "--seeds", type=Number(int, 1), default=1, metavar="N", help="of the selftest: how many (default: 1)"
    )
    parser.add_argument(
        "--jobs", type=Number(int, 1), default=1, metavar="N", help="of the selftest: seeds at a time (default: 1)"
    )
    add_dask(parser, "a seed of the selftest at a time")
    parser.add_argument(
        "--keep",
        metavar="FOLDER",
        help="of the selftest: a file here for every seed that is done, so that a run that was stopped goes on "
        "(default: none)",
    )
    parser.add_argument(
        "--kernels",
        metavar="MODULE:NAME",
        help="of the selftest: right kernels of others to judge too, as in tests.parity.real_kernels:KERNELS "
        "(default: none)",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="of the selftest: print a page, not a table (default: off)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object (default: off)")
    parser.add_argument("--debug", action="store_true", help="show a traceback when something fails (default: off)")
