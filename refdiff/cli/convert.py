"""The command `convert`: a checkpoint in another wiring, with the proof that it computes the same."""

from __future__ import annotations

import argparse
import contextlib
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refdiff.cli.flags import UsageError

_EXACT = 1e-10
"""What float64 leaves of a layer's largest output after some hundred roundings, with room; more would be a mistake."""


def run(args: argparse.Namespace) -> int:
    """Convert one checkpoint, write the folder, and print how far the two are apart; returns the exit status.

    Raises:
        UsageError: the output folder is not empty.
        CheckpointError: the checkpoint is not there, or is broken.
        ValueError: there is no exact conversion; the message says why.
        RuntimeError: the two differ by more than rounding, or cannot be compared.
    """
    from refdiff import hub
    from refdiff.convert import convert, prove
    from refdiff.model import weights
    from refdiff.model.config import DiffLlamaConfig

    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is there already: name a new folder, or an empty one")
    folder = hub.snapshot(args.model, files=(*hub.CONFIG, *hub.WEIGHTS, *hub.TOKENIZER), local_files_only=args.offline)
    config = DiffLlamaConfig.from_pretrained(folder)
    architecture = _architecture(config.architectures)
    params = weights.load(folder, config, architecture)
    before = (config, params)
    _in_float64(before, args)
    after = convert(config, params, args.to, eager=args.eager)
    dtype = weights.resolve_dtype(folder, config) if args.dtype == "auto" else args.dtype
    with _all_or_nothing(output):
        weights.save(output, *after, architecture, dtype=dtype)
        for pattern in ("generation_config.json", *hub.TOKENIZER):
            for path in folder.glob(pattern):
                shutil.copyfile(path, output / path.name)
        written = prove(before, (after[0], weights.load(output, after[0], architecture, dtype=dtype)))
        _refuse_what_cannot_be_compared(written, f", as written in {dtype},")
    sys.stdout.write(f"as written to {output} in {dtype}: at most {written.worst:.1e} (layer {written.layer})\n")
    return 0


@contextlib.contextmanager
def _all_or_nothing(output: Path) -> Iterator[None]:
    """Leave the folder as it was, empty or not there, where an error or Ctrl-C ends this."""
    was_there = output.exists()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # what ended this is the error to tell
            for path in output.iterdir():
                path.unlink()
            if not was_there:
                output.rmdir()
        raise


def _in_float64(before: tuple[Any, dict[str, Any]], args: argparse.Namespace) -> None:
    """Convert the attention weights in float64 and print what that changes: nothing, or the conversion is wrong."""
    import numpy as np

    from refdiff.convert import convert, layers_of, prove
    from refdiff.model.weights import flatten, nest

    config, params = before
    wide = {
        "layers": [
            {"self_attn": nest({k: a.astype(np.float64) for k, a in flatten(layer["self_attn"]).items()})}
            for layer in layers_of(params)
        ]
    }
    proof = prove((config, wide), convert(config, wide, args.to, eager=args.eager))
    sys.stdout.write(f"{config.wiring} to {args.to}: {proof}\n")
    _refuse_what_cannot_be_compared(proof)
    if proof.worst > _EXACT:
        raise RuntimeError(f"the conversion is wrong: {proof.worst:.1e} is more than rounding; nothing was written")


def _refuse_what_cannot_be_compared(proof: Any, how: str = "") -> None:
    if not math.isfinite(proof.worst):
        raise RuntimeError(
            f"attention layer {proof.layer}{how} gives NaN or infinity, or zeros in one of the two alone; nothing was "
            "written"
        )


def _architecture(named: list[str] | None) -> str:
    """The class of ours that a config names, a Llama's among them; a causal language model if it names none."""
    from refdiff.model.weights import ARCHITECTURES

    ours = [f"Diff{name.removeprefix('Diff')}" for name in named or []]
    return next((name for name in ours if name in ARCHITECTURES), "DiffLlamaForCausalLM")
