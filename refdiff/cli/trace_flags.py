"""The flags of `refdiff trace`."""

from __future__ import annotations

from typing import Any

from refdiff.cli.flags import Number, add_common
from refdiff.cli.spec import add_spec

EXAMPLES = """
examples:
  refdiff trace path/to/checkpoint "Once upon a time" -o run.safetensors
  refdiff trace --spec hf_diffllama --layer 3 mine.npz -o ref.safetensors
  refdiff trace --compare mine.safetensors run.safetensors
  refdiff trace --points
"""


def add_trace(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "trace",
        examples=EXAMPLES,
        help="every intermediate of a run, and where two runs part",
        description="Record every intermediate of a run of a model, or with --spec of an attention on the inputs in a "
        "file, under the names of transformers' modules and of the points between them; or compare the recording of "
        "another program with such a file, and name the first point that is not what its own inputs make it. Exit "
        "status: 0 recorded, or nothing diverges; 1 something diverges; 2 trouble: a model, a file or a flag that "
        "nothing can be recorded or compared by.",
    )
    parser.add_argument(
        "--points", action="store_true", help="print the name, the shape and the meaning of each point (default: off)"
    )
    record = parser.add_argument_group("record")
    record.add_argument(
        "of",
        nargs="?",
        metavar="MODEL",
        help="a folder, or a hub repo id; with --spec a FILE of inputs, which `refdiff check --inputs` lists "
        "(default: none, one is needed)",
    )
    record.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the text that is run (default: none, this or --ids is needed)"
    )
    record.add_argument(
        "--ids", metavar="N,N,...", help="token ids in place of a text; needs no tokenizer (default: none)"
    )
    add_spec(record, None)
    record.add_argument("-o", "--output", metavar="FILE", help="the safetensors file to write (default: none, needed)")
    record.add_argument(
        "--maps", action="store_true", help="the attention weights too, probs1 and probs2 (default: off)"
    )
    record.add_argument(
        "--dtype",
        choices=("auto", "float32", "float64", "float16", "bfloat16"),
        default="auto",
        help="the weights' type; the 16-bit ones are computed with in float32 (default: auto = as stored)",
    )
    record.add_argument(
        "--threads",
        type=Number(int, 0, off="0 = all cores"),
        default=0,
        metavar="N",
        help="processor threads (default: 0 = all cores, or what OMP_NUM_THREADS says)",
    )
    record.add_argument("-q", "--quiet", action="store_true", help="no progress (default: off)")

    compare = parser.add_argument_group("compare")
    compare.add_argument(
        "--compare",
        nargs=2,
        metavar=("MINE", "REF"),
        help="MINE: a safetensors or npz file, or a folder that transformers' model_addition_debugger_context wrote "
        "with use_repr=False; REF: a file of this command (default: none)",
    )
    compare.add_argument(
        "-m",
        "--model",
        metavar="PATH_OR_REPO",
        help="the model of REF; without it points are compared with REF's numbers alone (default: where REF says that "
        "it was, if it still is)",
    )
    compare.add_argument(
        "--free",
        action="store_true",
        help="compute each point from the inputs of the run, so that errors add up (default: off = from the points "
        "before it in MINE, so that an error belongs to the point that made it)",
    )
    compare.add_argument(
        "--precision",
        choices=("auto", "float64", "float32", "tf32", "float16", "bfloat16"),
        default="auto",
        help="what MINE computes in (default: auto = from its numbers)",
    )
    compare.add_argument("--json", action="store_true", help="print one JSON object (default: off)")
    add_common(parser)
