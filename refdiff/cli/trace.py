"""`refdiff trace`: record every intermediate of a run, or say where two runs part."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.cli.flags import UsageError
from refdiff.cli.spec import parts, spec_of
from refdiff.cli.terminal import note, size

if TYPE_CHECKING:
    from refdiff.oracle.trace import Trace


def run(args: argparse.Namespace) -> int:
    """Write a trace and print its name, or print a comparison; the exit status of one that diverges is 1.

    Raises:
        UsageError: flags that do not fit together.
        CheckpointError: a model or a file that cannot be read.
    """
    if args.points:
        from refdiff.cli.trace_points import lines

        sys.stdout.write("\n".join(lines()) + "\n")
        return 0
    if args.compare:
        return _compare(args)
    if args.spec is None and (args.set or args.layer is not None):
        raise UsageError(f"{'--set' if args.set else '--layer'} is for --spec; the model has its own")
    return _record(args) if args.spec is None else _record_spec(args)


def _record_spec(args: argparse.Namespace) -> int:
    if args.of is None or args.output is None:
        raise UsageError("to record a spec, give the FILE with its inputs, and -o, such as -o ref.safetensors")
    for flag, given in (
        ("PROMPT", args.prompt), ("--ids", args.ids), ("--dtype", args.dtype != "auto"), ("-m", args.model),
        ("--free", args.free), ("--json", args.json),
    ):  # fmt: skip
        if given:
            raise UsageError(f"{flag} does not go with --spec, which takes a FILE of inputs; it is run in float64")
    from refdiff.oracle.inputs.files import read_arrays
    from refdiff.oracle.trace import trace

    _, inputs, _ = parts(read_arrays(args.of)[0])
    spec, read = spec_of(args, inputs, source=args.of)
    try:
        traced = trace(spec, inputs, maps=args.maps)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{args.of}: {error}{read}") from error
    return _written(traced, f"{len(traced)} points of {args.of}", args)


def _written(traced: Trace, what: str, args: argparse.Namespace) -> int:
    traced.write(args.output)
    if not args.quiet:
        note(f"{what}, {size(Path(args.output).stat().st_size)}")
    sys.stdout.write(f"{args.output}\n")
    return 0


def _record(args: argparse.Namespace) -> int:
    if args.of is None or (args.prompt is None) == (args.ids is None):
        raise UsageError("to record, give MODEL, and either PROMPT or --ids; to compare, --compare MINE REF")
    if args.output is None:
        raise UsageError("no file to write: give one with -o, such as -o run.safetensors")
    for flag, given in (("-m", args.model), ("--free", args.free), ("--json", args.json)):
        if given:
            raise UsageError(f"{flag} is for --compare; the model to record is the first argument")
    ids: Any = None if args.ids is None else _ids(args.ids)
    model, tokenizer = _load(args)
    if tokenizer is not None:
        ids = tokenizer([args.prompt], return_tensors="np")["input_ids"]
    from refdiff.oracle.trace import trace

    traced = trace(model, ids, maps=args.maps)
    return _written(traced, f"{len(traced)} points of {len(ids[0])} tokens", args)


def _ids(text: str) -> list[list[int]]:
    try:
        ids = [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UsageError(f"--ids is {text!r}, but must be whole numbers with commas between, such as 1,15,7") from None
    if not ids or min(ids) < 0:
        raise UsageError(f"--ids is {text!r}, but must be one or more token ids, from 0")
    return [ids]


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model, and where a text is given its tokenizer."""
    if args.ids is None:
        from refdiff.cli.loading import load

        return load(argparse.Namespace(**{**vars(args), "model": args.of, "backend": "numpy", "weights": "expanded"}))
    import refdiff

    return refdiff.DiffLlamaForCausalLM.from_pretrained(
        args.of, dtype=args.dtype, threads=args.threads or None, local_files_only=args.offline
    ), None


def _compare(args: argparse.Namespace) -> int:
    for flag, given in (
        ("MODEL", args.of),
        ("-o", args.output),
        ("--ids", args.ids),
        ("--maps", args.maps),
        ("--spec", args.spec),
    ):
        if given:
            raise UsageError(f"{flag} is to record; --compare takes MINE and REF")
    from refdiff.oracle.divergence import first_divergence
    from refdiff.oracle.trace import read_trace

    mine, ref = args.compare
    model = args.model
    if model is not None:
        from refdiff import hub

        model = hub.snapshot(model, files=hub.CONFIG + hub.WEIGHTS, local_files_only=args.offline)
    reference = read_trace(ref, model=model)
    found = first_divergence(mine, reference, mode="free" if args.free else "local", precision=args.precision)
    text = json.dumps(found.to_dict(), ensure_ascii=False, indent=2, allow_nan=False) if args.json else str(found)
    sys.stdout.write(text + "\n")
    return int(bool(found))
