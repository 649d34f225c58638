"""`refdiff convert`: convert a checkpoint to another attention variant, and check that it computes the same."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.checkpoint_files import OTHER_TOKENIZER_FILES, TOKENIZER_FILES
from refdiff.cli.flags import MODEL, UsageError, add_common, add_dtype
from refdiff.cli.loading import fetch
from refdiff.cli.output_files import check_folder
from refdiff.cli.parser import Parser
from refdiff.cli.terminal import waiting
from refdiff.errors import CheckpointError
from refdiff.model.variants import VARIANTS, conversions, current_name

if TYPE_CHECKING:
    from refdiff.convert import Proof


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Convert a checkpoint to another attention variant, and print how far the two are apart on random inputs."
    )
    parser.examples = """
refdiff convert kajuma/DiffLlama-0.3B-handcut path/to/new --to paper
refdiff convert path/to/llama path/to/new --to v2
"""
    parser.add_argument("model", metavar=MODEL, help="folder or hub repo")
    parser.add_argument("output", metavar="OUTPUT", help="the folder to write, new or empty")
    names: dict[str, Any] = {"type": current_name, "choices": [*VARIANTS], "metavar": "VARIANT"}
    parser.add_argument("--to", required=True, help=f"one of {', '.join(VARIANTS)}", **names)
    parser.add_argument("--eager", action="store_true", help="MODEL is of multihead_diffattn.py")
    add_dtype(parser, text="the type to write")
    add_common(parser)
    exact = [
        f"{old} to {new}{conversion.condition and ' ' + conversion.condition}"
        for old in VARIANTS
        for new, conversion in conversions(old).items()
    ]
    parser.notes = [
        "; ".join(f"{name} = {variant.what}" for name, variant in VARIANTS.items()) + ".",
        f"Exact conversions: {'; '.join(exact)}. The rest is refused. Converting 16-bit weights rounds some of them "
        "again; the second report shows the effect on each layer's output. If the difference exceeds rounding error, "
        "the command fails and writes nothing.",
        "--eager: unilm's multihead_diffattn.py pairs other key heads where there are fewer of them than query heads.",
    ]


def run(args: argparse.Namespace) -> int:
    """Convert a checkpoint, write the folder, print the differences, and return the exit status.

    Weights are read from the file, converted in float64, proved and written one layer after the other. Beside the pages
    of the files, which the system keeps mapped as long as it has room, memory is for a few copies of one layer's
    attention in float64, or of the largest other array where it is not stored in the type that is written.
    """
    from refdiff.convert import convert_later, prove
    from refdiff.files import copy_file
    from refdiff.generation.chat_template import NAMED_TEMPLATES
    from refdiff.model import weights
    from refdiff.model.config import DiffLlamaConfig

    output = Path(args.output)
    if args.output == args.model:
        raise UsageError(f"OUTPUT {output}: got the name of MODEL, expected another; a conversion writes a new folder")
    if output.is_symlink() and not output.exists():
        raise UsageError(
            f"OUTPUT {output}: links to {output.readlink()}, which does not exist; make that folder, or name another"
        )
    _refuse_taken(output)
    check_folder("OUTPUT", output)
    folder = fetch(args.model, args, also=OTHER_TOKENIZER_FILES)
    config = DiffLlamaConfig.from_pretrained(folder)
    architecture = weights.architecture_of(config)
    dtype = weights.resolve_dtype(folder, config) if args.dtype == "auto" else args.dtype
    before = config, weights.load(folder, config, architecture, stored=True, deferred=True)
    try:
        with waiting("comparing the two", quiet=args.quiet):
            after = convert_later(*before, args.to, eager=args.eager)
            proof = prove(before, after)
        sys.stdout.write(f"{config.variant} to {args.to}: {proof}\n")
        _refuse_what_differs(proof)
        with waiting("writing and comparing", quiet=args.quiet), _all_or_nothing(output) as new:
            weights.save(new, *after, architecture, dtype=dtype)
            for pattern in ("generation_config.json", *TOKENIZER_FILES, *OTHER_TOKENIZER_FILES, NAMED_TEMPLATES):
                for path in folder.glob(pattern):
                    copy = new / path.relative_to(folder)
                    copy.parent.mkdir(exist_ok=True)
                    copy_file(path, copy, folder=folder)
            written = weights.load(new, after[0], architecture, dtype=dtype, stored=True, deferred=True)
            proof = prove(before, (after[0], written), dtype=dtype)
            _refuse_what_differs(proof, dtype)
    except (CheckpointError, UsageError):  # which name their file
        raise
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"{args.model}: {error}") from error
    sys.stdout.write(
        f"as written in {dtype}: {proof.worst:.1e} (layer {proof.layer}; rounding explains up to "
        f"{max(proof.rounded):.1e})\n"
    )
    return 0


@contextlib.contextmanager
def _all_or_nothing(output: Path) -> Iterator[Path]:
    """Yield a folder in `output`, whose files move to `output` at the end; after an error or Ctrl-C, remove it.

    What a conversion that was killed has left there is removed by the next one, or put in place if it was complete.
    """
    from refdiff.files import new_folder
    from refdiff.model.commit import replacing

    with new_folder(output):
        try:
            with replacing(output, wait=False) as new:
                _refuse_taken(output)
                yield new
        except OSError as error:
            error.filename = str(output)  # the user knows no other
            raise


def _refuse_taken(output: Path) -> None:
    """Raise `UsageError` for an output that has something else in it than a conversion that did not end."""
    from refdiff.model.commit import PENDING

    if output.exists() and (not output.is_dir() or any(not p.name.startswith(PENDING) for p in output.iterdir())):
        raise UsageError(f"OUTPUT {output}: exists already; name a new folder, or an empty one")


def _refuse_what_differs(proof: Proof, dtype: str | None = None) -> None:
    """Raise `RuntimeError` if the difference exceeds rounding error, in `dtype` or in float64."""
    how = "" if dtype is None else f", as written in {dtype},"
    if not math.isfinite(proof.worst):
        raise RuntimeError(
            f"attention layer {proof.layer}{how} gives NaN or infinity, or zeros in one of the two alone; nothing was "
            "written"
        )
    if proof.changed:
        raise RuntimeError(f"{', '.join(proof.changed)}: changed{how} without being converted; nothing was written")
    if (layer := proof.unexplained) is None:
        return
    far = f"{proof.differences[layer]:.1e}"
    if dtype is None:
        raise RuntimeError(f"the conversion is wrong: {far} (layer {layer}) is more than rounding; nothing was written")
    raise RuntimeError(
        f"attention layer {layer}{how} differs by {far} of its largest output, but rounding every weight once explains "
        f"{proof.rounded[layer]:.1e}: {dtype} cannot hold the converted weights; choose a --dtype with more range; "
        "nothing was written"
    )
