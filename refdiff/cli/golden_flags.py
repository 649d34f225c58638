"""The flags of `refdiff golden`."""

from __future__ import annotations

from typing import Any

from refdiff.cli.flags import Number, add_common

EXAMPLES = """
examples:
  refdiff golden export vectors --preset hf_diffllama --dtype bfloat16
  refdiff golden verify vectors outputs
"""
PRESETS = ("hf_diffllama", "ms_v1", "ms_v1_naive", "timm", "phi4flash", "motif", "diff_v2", "gda")
PROFILES = ("identify", "whisper", "cancel", "extreme", "natural", "degenerate", "layout", "serving")


def add_golden(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "golden",
        examples=EXAMPLES,
        help="test vectors for kernels in any language",
        description="export writes inputs, right answers and budgets as files; verify judges what a program made of "
        "them: for each case DIR/OUTPUTS has <case>.safetensors or <case>.npz with out (and dq, lse1, ... if you "
        "like), or raw float32 as <case>.out.f32. Exit status of verify: 0 all pass, 1 anything else.",
    )
    parser.add_argument("action", choices=("export", "verify"), help="write vectors, or judge outputs by them")
    parser.add_argument("folder", metavar="VECTORS", help="the folder of the vectors")
    parser.add_argument("outputs", nargs="?", metavar="OUTPUTS", help="verify: the folder of outputs (default: none)")
    export = parser.add_argument_group("export")
    export.add_argument(
        "--preset",
        choices=PRESETS,
        metavar="NAME",
        default="hf_diffllama",
        help=f"whose attention: {', '.join(PRESETS)} (default: hf_diffllama)",
    )
    export.add_argument(
        "--profile",
        action="append",
        choices=PROFILES,
        metavar="NAME",
        help=f"what the numbers are like, {', '.join(PROFILES)}; may be given several times (default: identify and "
        "whisper)",
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="that inputs are stored in, and kernels round to (default: float32)",
    )
    export.add_argument("-s", "--seed", type=Number(int, 0), default=0, metavar="N", help="of the numbers (default: 0)")
    export.add_argument("--npz", action="store_true", help="write .npz files too (default: off)")
    export.add_argument("--no-gradients", action="store_true", help="outputs alone (default: off = gradients too)")
    verify = parser.add_argument_group("verify")
    verify.add_argument("--json", action="store_true", help="print one JSON object (default: off)")
    add_common(parser)
