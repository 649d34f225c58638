"""`refdiff trace`: record every intermediate result of a run, or find where two runs diverge."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.cli.answering import encode
from refdiff.cli.flags import MODEL, UsageError, add_common, add_dtype, add_threads, refuse, utf8_text
from refdiff.cli.loading import fetch, load, read_prompt, refuse_other_heads
from refdiff.cli.output_files import check_file, write_npz
from refdiff.cli.parser import Parser
from refdiff.cli.spec import SPEC_NOTE, add_spec, parts, spec_of
from refdiff.cli.terminal import note, print_report, size, waiting, write_text

if TYPE_CHECKING:
    from refdiff.oracle.trace import Trace

WORST = 10
"""Points that a comparison lists without --all."""
KINDS = (".safetensors", ".npz")
PRECISIONS = ("auto", "float64", "float32", "tf32", "float16", "bfloat16")


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Record every intermediate result of a model, or with --spec of one attention, under the names of "
        "transformers' modules and of the points between them; or compare another program's recording with such a "
        "file, and name the first wrong point: one that is wrong while every point before it is right."
    )
    parser.examples = """
refdiff trace path/to/checkpoint "Once upon a time" -o run.safetensors
refdiff trace --spec hf_diffllama --layer 3 mine.npz -o ref.safetensors
refdiff trace --compare mine.safetensors run.safetensors
"""
    parser.add_argument("--points", action="store_true", help="list all points and their shapes")
    record = parser.add_argument_group("record")
    record.add_argument("of", nargs="?", metavar="MODEL", help="folder or hub repo; with --spec, a FILE of inputs")
    record.add_argument(
        "prompt", nargs="?", type=utf8_text, metavar="PROMPT", help="the text that is run, - = standard input"
    )
    record.add_argument("--ids", metavar="N,N,...", help="token ids in place of a text")
    add_spec(record, None)
    record.add_argument("-o", "--output", metavar="FILE", help=".safetensors or .npz file to write")
    record.add_argument("--maps", action="store_true", help="record attention weights too")
    add_dtype(record)
    add_threads(record)
    compare = parser.add_argument_group("compare")
    compare.add_argument("--compare", nargs=2, metavar=("MINE", "REF"), help="compare two files")
    compare.add_argument("-m", "--model", metavar=MODEL, help="the model of REF (default: as REF says)")
    text = "the type that MINE computes in"
    compare.add_argument("--precision", choices=PRECISIONS, default="auto", metavar="TYPE", help=text)
    compare.add_argument("--all", action="store_true", help="list every point, not the worst 10")
    compare.add_argument("--json", action="store_true", help="print one JSON object")
    add_common(parser)
    parser.notes = [
        "Exit status: 0 recorded, or nothing diverges; 1 something diverges; 2 error.",
        "MINE is a safetensors or npz file; REF is a .safetensors file of this command. Its run is repeated: its model "
        "must be where REF says, or be given by -m.",
        "Each point is computed from the points before it in MINE, so that an error belongs to the point that made it.",
        "Log-sum-exps may have another base than REF; `refdiff check` requires the spec's base.",
        SPEC_NOTE + " `refdiff check --inputs` lists the arrays of FILE.",
    ]


def run(args: argparse.Namespace) -> int:
    """Write a trace and print its name, or print a comparison; return 1 if it diverges."""
    if args.points:
        from refdiff.oracle.trace import POINTS

        sys.stdout.write(POINTS.read_text(encoding="utf-8"))
        return 0
    if args.compare:
        return _compare(args)
    if args.spec is None:
        refuse("only for --spec; the model has its own", {"--set": args.set, "--layer": args.layer is not None})
    return _record(args) if args.spec is None else _record_spec(args)


def _comparing(args: argparse.Namespace) -> dict[str, object]:
    """Return the options that are for --compare alone."""
    precision = args.precision != "auto"
    return {"-m": args.model, "--json": args.json, "--all": args.all, "--precision": precision}


def _record_spec(args: argparse.Namespace) -> int:
    if args.of is None or args.output is None:
        raise UsageError(
            "--spec: expected the FILE of its inputs and -o, such as: refdiff trace --spec NAME mine.npz -o ref.npz"
        )
    others = {"PROMPT": args.prompt, "--ids": args.ids, "--dtype": args.dtype != "auto"}
    refuse(
        "no effect with --spec, which takes a FILE of inputs and computes in float64",
        {**others, **_comparing(args)},
    )
    check_file("-o", Path(args.output), KINDS)
    from refdiff.oracle.inputs.arrays import read_arrays
    from refdiff.oracle.trace import trace

    _, inputs, _ = parts(read_arrays(args.of)[0])
    spec, read = spec_of(args, inputs, source=args.of)
    try:
        traced = trace(spec, inputs, maps=args.maps)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{args.of}: {error}{read}") from error
    return _write(traced, f"{len(traced)} points of {args.of}", args)


def _write(traced: Trace, what: str, args: argparse.Namespace) -> int:
    """Write all points, and the inputs of the run as inputs.…, in the format of the suffix."""
    path = Path(args.output)
    with waiting(f"writing {path}", quiet=args.quiet):
        if path.suffix.lower() == ".safetensors":
            traced.write(path)
        else:
            write_npz(path, {**traced.points, **{f"inputs.{name}": x for name, x in traced.inputs.items()}})
    if not args.quiet:
        note(f"{what}, {size(path.stat().st_size)}")
    write_text(f"{args.output}\n")
    return 0


def _record(args: argparse.Namespace) -> int:
    refuse("only for --compare; the model to record is the first argument", _comparing(args))
    if args.prompt is not None and args.ids is not None:
        raise UsageError("PROMPT and --ids: got both, expected one; leave one out")
    if args.of is None or (args.prompt is None and args.ids is None):
        got = "neither" if args.of is None else f"{args.of!r} alone"
        raise UsageError(
            f"MODEL and PROMPT (or --ids): got {got}, expected both to record a run; --compare compares two"
        )
    if args.output is None:
        raise UsageError("-o: got none, expected the file to write, such as -o run.safetensors")
    check_file("-o", Path(args.output), KINDS)
    import refdiff

    if args.ids is None:
        usual = {"model": args.of, "backend": "numpy", "weights": "expanded", "no_mmap": False}
        model, tokenizer = load(argparse.Namespace(**{**vars(args), **usual}))
        piped = argparse.Namespace(prompt="-", prompt_flag=None, file=None)
        prompt = read_prompt(piped) if args.prompt == "-" else args.prompt
        with waiting("tokenizing the prompt", quiet=args.quiet):
            ids = [encode(model, tokenizer, prompt)[1]]
    else:
        ids = _ids(args.ids)
        folder = fetch(args.of, args)
        refuse_other_heads(args.of, folder)
        model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder, dtype=args.dtype, threads=args.threads or None)
        if max(ids[0]) >= (vocabulary := model.config.vocab_size):
            raise UsageError(
                f"--ids: got {max(ids[0])}, expected token ids from 0 to {vocabulary - 1}, the vocabulary of the model"
            )
    from refdiff.oracle.trace import trace

    with waiting("recording", quiet=args.quiet):
        traced = trace(model, ids, maps=args.maps)
    tokens = len(ids[0])
    return _write(traced, f"{len(traced)} points of {tokens} token{'s' * (tokens != 1)}", args)


def _ids(text: str) -> list[list[int]]:
    try:
        ids = [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UsageError(f"--ids: got {text!r}, expected whole numbers with commas between, such as 1,15,7") from None
    if not ids or min(ids) < 0:
        raise UsageError(f"--ids: got {text!r}, expected one or more token ids, from 0")
    return [ids]


def _compare(args: argparse.Namespace) -> int:
    others = {"MODEL": args.of, "-o": args.output, "--ids": args.ids, "--maps": args.maps, "--spec": args.spec}
    refuse("only to record; --compare takes MINE and REF", others)
    from refdiff.oracle.divergence import first_divergence
    from refdiff.oracle.trace import read_trace

    mine, ref = args.compare
    reference = read_trace(ref, model=None if args.model is None else fetch(args.model, args))
    with waiting("comparing", quiet=args.quiet):
        divergence = first_divergence(mine, reference, precision=args.precision)
    print_report(divergence.to_dict(), None if args.json else divergence.text(None if args.all else WORST))
    return int(bool(divergence))
