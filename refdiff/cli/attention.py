"""`refdiff attention`: a text → what its tokens attend to, as a page, a picture or arrays."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.cli.answering import encode
from refdiff.cli.flags import PIPE_NOTE, Number, UsageError, add_common, add_machine, add_model, add_prompt, refuse
from refdiff.cli.loading import check_prompt, load, read_prompt
from refdiff.cli.output_files import PICTURES, check_file, write_npz, write_picture
from refdiff.cli.parser import Parser
from refdiff.cli.terminal import note, size, waiting, write_text

if TYPE_CHECKING:
    from refdiff.viz import AttentionMaps

KINDS = (".html", *PICTURES, ".npz")


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Show which tokens each token attends to, for every pair of heads: A1, A2, lambda and A1 - lambda A2. The "
        "suffix of FILE decides the form: .html is one page to explore, which loads nothing from elsewhere; .png and "
        ".svg are pictures, which need matplotlib; .npz holds NumPy arrays. The name of FILE goes to standard output."
    )
    parser.examples = """
refdiff attention "Once upon a time" -o page.html
refdiff attention -m path/to/checkpoint "Once upon a time" -o maps.npz
refdiff attention "Once upon a time" -o maps.png --layer 3
"""
    group = parser.add_argument_group("model and text")
    add_model(group, "-m", "--model")
    add_prompt(group)
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", metavar="FILE", required=True, help=", ".join(KINDS))
    output.add_argument(
        "--layer", type=Number(int, 0), metavar="N", help="layer (default: of the pair that cancels most)"
    )
    output.add_argument(
        "--pair", type=Number(int, 0), metavar="N", help="pair of heads (default: the one that cancels most)"
    )
    machine = parser.add_argument_group("machine")
    add_machine(machine)
    add_common(machine)
    parser.notes = [
        "--layer and --pair count from 0. Without both, a page opens with the pair whose two maps cancel most, and a "
        "picture shows that pair. With one of them, the other is the mean over all.",
        "In a Llama, --pair is a head, and the default is the mean over all. A page shows every layer and pair.",
        PIPE_NOTE,
    ]


def run(args: argparse.Namespace) -> int:
    """Write the file, print its name and return the exit status."""
    check_prompt(args)
    path = Path(args.output)
    check_file("-o", path, KINDS)
    kind, chosen = path.suffix.lower(), args.layer is not None or args.pair is not None
    refuse("an .npz holds every layer and pair; leave out --layer and --pair", {"-o": kind == ".npz" and chosen})
    prompt = read_prompt(args)
    model, tokenizer = load(args, head=False)
    from refdiff.viz import attention_maps
    from refdiff.viz.page.build import page_size

    with waiting("tokenizing the prompt", quiet=args.quiet):
        _, ids = encode(model, tokenizer, prompt)
    config = model.config
    if kind == ".html":
        page_size(config.num_hidden_layers * config.num_query_heads, len(ids))
    with waiting("computing the attention maps", quiet=args.quiet):
        maps = attention_maps(model, ids, tokenizer)
        try:
            maps.title(args.layer, args.pair)
        except IndexError as error:
            raise UsageError(f"--{str(error).removesuffix(', or None for the mean')}") from None
        _write(maps, args, path, prompt)
    write_text(f"{path}\n")
    return 0


def _write(maps: AttentionMaps, args: argparse.Namespace, path: Path, prompt: str) -> None:
    from refdiff import viz
    from refdiff.files import write_atomically
    from refdiff.viz.page import build

    kind, chosen = path.suffix.lower(), (args.layer, args.pair)
    if chosen == (None, None):
        chosen = maps.most_cancelling()
    if kind in PICTURES:
        write_picture(viz.plot_attention(maps, *chosen), path)
    elif kind == ".html":
        text = viz.attention_page(maps, prompt=prompt, model=args.model, layer=chosen[0], pair=chosen[1])
        page = text.encode("utf-8")
        write_atomically(path, page)
        if len(page) > build.LARGE_BYTES:
            large = f"{path}: {size(len(page))}, which a browser opens slowly"
            note(f"refdiff: warning: {large}; a shorter text makes a smaller page")
    else:
        import numpy as np

        arrays = {name: getattr(maps, name) for name in ("first", "second", "difference", "lambdas", "starts")}
        kept = {name: array for name, array in arrays.items() if array is not None}
        write_npz(path, {"tokens": np.array(maps.tokens), **kept})
