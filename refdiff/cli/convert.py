"""The command `convert`: a checkpoint in another wiring, with the proof that it computes the same."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.cli.flags import UsageError

if TYPE_CHECKING:
    from refdiff.convert import Proof


def run(args: argparse.Namespace) -> int:
    """Convert one checkpoint, write the folder, and print how far the two are apart; returns the exit status.

    Weights are read from the file, converted in float64, proved and written one layer after the other. Beside the pages
    of the files, which the system keeps mapped as long as it has room, memory is for a few copies of one layer's
    attention in float64, or of the largest other array where it is not stored in the type that is written.

    Raises:
        UsageError: the output folder is not empty, or a link that leads nowhere.
        CheckpointError: the checkpoint is not there, or is broken.
        ValueError: there is no exact conversion; the message says why.
        RuntimeError: the two differ by more than rounding, or cannot be compared.
    """
    from refdiff import hub
    from refdiff.convert import convert_later, prove
    from refdiff.files import copy_file
    from refdiff.model import weights
    from refdiff.model.config import DiffLlamaConfig

    output = Path(args.output)
    _refuse_what_is_there(output)
    files = (*hub.CONFIG, *hub.WEIGHTS, *hub.TOKENIZER, *hub.OTHER_TOKENIZERS)
    folder = hub.snapshot(args.model, files=files, local_files_only=args.offline)
    config = DiffLlamaConfig.from_pretrained(folder)
    architecture = _architecture(config.architectures)
    dtype = weights.resolve_dtype(folder, config) if args.dtype == "auto" else args.dtype
    before = config, weights.load(folder, config, architecture, stored=True, deferred=True)
    after = convert_later(*before, args.to, eager=args.eager)
    proof = prove(before, after)
    sys.stdout.write(f"{config.wiring} to {args.to}: {proof}\n")
    _refuse_what_differs(proof)
    with _all_or_nothing(output):
        weights.save(output, *after, architecture, dtype=dtype)
        for pattern in files[len(hub.CONFIG + hub.WEIGHTS) :]:
            for path in folder.glob(pattern):
                copy_file(path, output / path.name, folder=folder)
        written = weights.load(output, after[0], architecture, dtype=dtype, stored=True, deferred=True)
        proof = prove(before, (after[0], written), dtype=dtype)
        _refuse_what_differs(proof, dtype)
    sys.stdout.write(
        f"as written to {output} in {dtype}: at most {proof.worst:.1e} (layer {proof.layer}); one rounding of every "
        f"weight makes up to {max(proof.rounded):.1e}\n"
    )
    return 0


def _refuse_what_is_there(output: Path) -> None:
    if output.is_symlink() and not output.exists():
        raise UsageError(
            f"{output} is a link to {output.readlink()}, which is not there: make that folder, or name another"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is there already: name a new folder, or an empty one")


@contextlib.contextmanager
def _all_or_nothing(output: Path) -> Iterator[None]:
    """Leave the folder as it was, empty or not there, where an error or Ctrl-C ends this."""
    missing = [path for path in (output, *output.parents) if not path.exists()]  # from the inside out
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # what ended this is the error to tell
            for path in output.iterdir():
                path.unlink()
            for path in missing:
                path.rmdir()
        raise


def _refuse_what_differs(proof: Proof, dtype: str | None = None) -> None:
    """Raise `RuntimeError` for more than what rounding, to `dtype` or in float64, explains."""
    how = "" if dtype is None else f", as written in {dtype},"
    if not math.isfinite(proof.worst):
        raise RuntimeError(
            f"attention layer {proof.layer}{how} gives NaN or infinity, or zeros in one of the two alone; nothing was "
            "written"
        )
    if proof.changed:
        raise RuntimeError(f"not what they were{how} are {', '.join(proof.changed)}; nothing was written")
    if (layer := proof.unexplained) is None:
        return
    far = f"{proof.differences[layer]:.1e}"
    if dtype is None:
        raise RuntimeError(f"the conversion is wrong: {far} (layer {layer}) is more than rounding; nothing was written")
    raise RuntimeError(
        f"attention layer {layer}{how} differs by {far} of its largest output, but one rounding of every weight makes "
        f"{proof.rounded[layer]:.1e}: {dtype} does not hold the converted weights, so name a --dtype of more range; "
        "nothing was written"
    )


def _architecture(named: list[str] | None) -> str:
    """The class of ours that a config names, a Llama's among them; a causal language model if it names none."""
    from refdiff.model.weights import ARCHITECTURES

    ours = [f"Diff{name.removeprefix('Diff')}" for name in named or []]
    return next((name for name in ours if name in ARCHITECTURES), "DiffLlamaForCausalLM")
