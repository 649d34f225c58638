"""The flags of `refdiff attention`."""

from __future__ import annotations

from typing import Any

from refdiff import bundled
from refdiff.cli.flags import Number, add_common
from refdiff.cli.loading import add_machine
from refdiff.cli.prompt import add_prompt

EXAMPLES = """
examples:
  refdiff attention -m path/to/checkpoint "Once upon a time" -o page.html
  refdiff attention -m path/to/checkpoint "Once upon a time" -o maps.png
"""


def add_attention(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "attention",
        examples=EXAMPLES,
        help="where the tokens of a text look",
        description="Write what every pair of heads looks at in a text, A1, A2, lambda and A1 - lambda A2: as one page "
        "to explore it in, which loads nothing from elsewhere, as a picture, or as arrays. The file's name goes to "
        "standard output.",
    )
    given = parser.add_argument_group("model and text")
    given.add_argument(
        "-m",
        "--model",
        metavar="PATH_OR_REPO",
        default=bundled.NAME,
        help="a folder with config.json, model.safetensors and tokenizer.json, or a hub repo id (default: bundled, a "
        "small model of fairy tales that the package brings)",
    )
    add_prompt(given)

    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=True,
        help=".html = the page, .png or .svg = a picture (needs matplotlib), .npz = NumPy arrays (required)",
    )
    output.add_argument(
        "--layer",
        type=Number(int, 0),
        metavar="N",
        help="the layer in the picture, or that the page opens with, from 0 (default: the mean over all)",
    )
    output.add_argument(
        "--pair",
        type=Number(int, 0),
        metavar="N",
        help="likewise the pair of heads, or in a Llama the head (default: the mean over all)",
    )
    output.add_argument(
        "--grid",
        action="store_true",
        help="the picture shows A1 - lambda A2 of every layer and pair (default: off = three maps)",
    )
    output.add_argument("-q", "--quiet", action="store_true", help="no progress (default: off)")

    machine = parser.add_argument_group("machine")
    add_machine(machine)
    add_common(machine)
