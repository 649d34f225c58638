"""A model and its tokenizer, with progress where somebody watches."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refdiff.cli.flags import Number

_CHUNK = 16 * 1024 * 1024
_SAMPLES = 64


def add_machine(group: Any) -> None:
    """Add the flags that say how a model is loaded and computed."""
    group.add_argument(
        "--backend", choices=("numpy", "cupy"), default="numpy", help="numpy = CPU, cupy = CUDA (default: numpy)"
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "float64", "float16", "bfloat16"),
        default="auto",
        help="the weights' type (default: auto = as stored)",
    )
    group.add_argument(
        "--weights",
        choices=("auto", "expanded", "stored"),
        default="auto",
        help="stored = matrices of 16 bits stay so, for half the memory and, on a CPU, some of the speed; expanded = "
        "to float32, once (default: auto = stored with cupy, expanded with numpy)",
    )
    group.add_argument(
        "--threads",
        type=Number(int, 0, off="0 = all cores"),
        default=0,
        metavar="N",
        help="processor threads (default: 0 = all cores, or what OMP_NUM_THREADS says)",
    )


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return (model, tokenizer) of `-m`, downloaded first where it is a hub repo id.

    Raises:
        CheckpointError: it is not there, or is broken.
        RuntimeError: the backend does not work.
    """
    import refdiff
    from refdiff import arrays, hub

    if args.threads:
        from threadpoolctl import threadpool_limits

        threadpool_limits(args.threads)
    arrays.backend(args.backend)  # before a download that would be for nothing
    folder = hub.snapshot(
        args.model,
        files=(*hub.CONFIG, *hub.WEIGHTS, *hub.TOKENIZER),
        local_files_only=args.offline,
        progress=not args.quiet,
    )
    tokenizer = refdiff.Tokenizer.from_pretrained(folder)
    if sys.stderr.isatty() and not args.quiet:
        read_ahead(sorted(folder.glob("*.safetensors")))
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(
        folder, dtype=args.dtype, backend=args.backend, weights=args.weights, threads=args.threads or None
    )
    return model, tokenizer


def read_ahead(files: Iterable[Path]) -> None:
    """Bring files from the disk into the system's cache, showing how far it is; does nothing for what is there already.

    The weights are a map of the file, so a first pass over the model would otherwise wait for the disk without a word.
    """
    from tqdm import tqdm

    from refdiff.files import open_file

    cold = [path for path in files if not _in_memory(path)]
    total = sum(path.stat().st_size for path in cold)
    if not total:
        return
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading weights", file=sys.stderr, leave=False) as bar:
        for path in cold:
            with open_file(path, folder=path.parent) as file:
                while piece := file.read(_CHUNK):
                    bar.update(len(piece))


def _in_memory(path: Path) -> bool:
    """Whether the system has the file in its cache, by a sample of its pages; True where it cannot tell."""
    from refdiff.files import open_file

    if not hasattr(os, "RWF_NOWAIT"):
        return True
    with open_file(path, folder=path.parent) as file:
        length = os.fstat(file.fileno()).st_size
        for i in range(_SAMPLES):
            try:
                os.preadv(file.fileno(), [bytearray(1)], length * i // _SAMPLES, os.RWF_NOWAIT)
            except OSError as error:
                return error.errno != errno.EAGAIN
    return True
