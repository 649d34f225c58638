"""The flags of `refdiff golden`."""

from __future__ import annotations

from typing import Any

from refdiff.cli.flags import Number, add_common
from refdiff.cli.spec import add_spec

EXAMPLES = """
examples:
  refdiff golden export vectors --spec hf_diffllama --recipe bfloat16
  refdiff golden export vectors --spec ms_v1 --set window=5 --layer 3 --core
  refdiff golden verify vectors outputs
"""
OF_EXPORT: dict[str, Any] = {
    "spec": "hf_diffllama", "layer": None, "set": [], "recipe": "auto", "profile": None, "dtype": "auto", "core": False,
    "seed": 0, "npz": False, "no_gradients": False,
}  # fmt: skip
"""What export alone takes, and what each is if it is not given."""
PROFILES = (
    "discriminating", "tiny_values", "cancellation", "extreme", "natural", "degenerate", "layout", "serving", "tiles",
)  # fmt: skip
ALIASES = ("identify", "whisper", "cancel")
"""Former names of the first three, still accepted."""


def add_golden(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "golden",
        examples=EXAMPLES,
        help="test vectors for kernels in any language",
        description="export writes inputs, right answers and budgets as files; index.txt and manifest.json in VECTORS "
        "say what is where. verify judges what a program made of them. A case is called as index.txt says, such as "
        "discriminating-0-float32-0; for each, OUTPUTS has <case>.safetensors or <case>.npz with out, and dq, lse1, "
        "... if you like; or <case>.out.f32, <case>.dq.f32, ..., raw float32, little-endian, in row-major order. "
        "Without out a case is missing; what else is not given is not judged, and listed. Exit status of verify: "
        "0 all pass, 1 not all, 2 trouble: a folder, a file or a flag that nothing can be judged by.",
    )
    parser.add_argument("action", choices=("export", "verify"), help="write vectors, or judge outputs by them")
    parser.add_argument("folder", metavar="VECTORS", help="the folder of the vectors")
    parser.add_argument("outputs", nargs="?", metavar="OUTPUTS", help="verify: the folder of outputs (default: none)")
    export = parser.add_argument_group("export")
    add_spec(
        export,
        OF_EXPORT["spec"],
        dimensions="query_heads, key_heads and head_dim that a preset is not given are small",
        layer="2 for a preset; 0, or what it has, for a JSON file",
    )
    export.add_argument(
        "--recipe",
        metavar="NAME_OR_FILE",
        help="what the kernel rounds: float32, tf32, bfloat16 or float16; or a JSON file with the fields of a Recipe "
        "(default: auto = the type of --dtype)",
    )
    export.add_argument(
        "--profile",
        action="append",
        choices=(*PROFILES, *ALIASES),
        metavar="NAME",
        help=f"what the numbers are like, {', '.join(PROFILES)}; may be given several times (default: discriminating "
        "and tiny_values)",
    )
    export.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="that inputs are stored in (default: auto = what --recipe stores, or float32)",
    )
    export.add_argument(
        "--core",
        action="store_true",
        help="leave out the cases of a whole layer, for a kernel that starts from q, k and v (default: off)",
    )
    export.add_argument("-s", "--seed", type=Number(int, 0), metavar="N", help="of the numbers (default: 0)")
    export.add_argument("--npz", action="store_true", help="write .npz files too (default: off)")
    export.add_argument("--no-gradients", action="store_true", help="outputs alone (default: off = gradients too)")
    parser.set_defaults(**OF_EXPORT)
    verify = parser.add_argument_group("verify")
    verify.add_argument("--json", action="store_true", help="print one JSON object (default: off)")
    add_common(parser)
