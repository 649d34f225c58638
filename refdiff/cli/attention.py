"""`refdiff attention`: a text → what its tokens look at, as a page, a picture or arrays."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.cli.flags import UsageError
from refdiff.cli.loading import load
from refdiff.cli.pictures import PICTURES, check_file, write_picture
from refdiff.cli.prompt import check_prompt, read_prompt
from refdiff.files import write_atomically

if TYPE_CHECKING:
    from refdiff.viz import AttentionMaps

KINDS = (".html", *PICTURES, ".npz")


def run(args: argparse.Namespace) -> int:
    """Write the file, print its name and return the exit status.

    Raises:
        UsageError: no text, flags that do not fit together, or an ending that is none of those known.
        ValueError: the text is too long.
        ImportError: a picture without matplotlib.
        OSError: the file cannot be written.
    """
    check_prompt(args)
    path = Path(args.output)
    _check_output(args, path)
    prompt = read_prompt(args)
    model, tokenizer = load(args)
    from refdiff.viz import attention_maps

    maps = attention_maps(model, prompt, tokenizer)
    try:
        maps.title(args.layer, args.pair)
    except IndexError as error:
        raise UsageError(f"--{error}") from None
    _write(maps, args, path, prompt)
    sys.stdout.write(f"{path}\n")
    return 0


def _check_output(args: argparse.Namespace, path: Path) -> None:
    """Refuse, before a model is loaded, what could not be written after it."""
    check_file("-o", path, KINDS)
    kind = path.suffix.lower()
    if args.grid and kind not in PICTURES:
        raise UsageError(f"--grid is for pictures, {' and '.join(PICTURES)}; the page shows all layers and pairs")
    if args.grid and (args.layer is not None or args.pair is not None):
        raise UsageError("--grid shows every layer and pair; leave out --layer and --pair")
    if kind == ".npz" and (args.layer is not None or args.pair is not None):
        raise UsageError("an .npz holds every layer and pair; leave out --layer and --pair")


def _write(maps: AttentionMaps, args: argparse.Namespace, path: Path, prompt: str) -> None:
    from refdiff import viz

    kind = path.suffix.lower()
    if kind in PICTURES:
        write_picture(
            viz.plot_attention_grid(maps) if args.grid else viz.plot_attention(maps, args.layer, args.pair), path
        )
    elif kind == ".html":
        chosen = (args.layer, args.pair) if (args.layer, args.pair) != (None, None) else maps.most_cancelling()
        page = viz.attention_page(maps, prompt=prompt, model=args.model, layer=chosen[0], pair=chosen[1])
        write_atomically(path, page.encode("utf-8"))
    else:
        import numpy as np

        arrays = {name: getattr(maps, name) for name in ("first", "second", "difference", "lambdas", "starts")}
        kept = {name: array for name, array in arrays.items() if array is not None}
        content = io.BytesIO()
        np.savez_compressed(content, tokens=np.array(maps.tokens), **kept)
        write_atomically(path, content.getvalue())
