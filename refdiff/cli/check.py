"""`refdiff check`: a file with a kernel's inputs and outputs → pass, fail or inconclusive."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any

from refdiff.cli.flags import UsageError, add_common
from refdiff.cli.parser import Parser
from refdiff.cli.spec import RECIPE_NOTE, SPEC_NOTE, add_spec, parts, preset_fields, recipe_of, spec_of
from refdiff.cli.terminal import print_report, waiting
from refdiff.errors import CheckpointError

DEFAULT_SPEC = "hf_diffllama"
MOST_NAMES = 12
"""So many arrays of a file are named in an error."""
NUMBERS_NOTE = """\
The numbers of a tensor are value/limit; a value above its limit fails. A row is one vector along the last axis; \
e_r is its error, a root mean square. E_r is the error that correct kernels have in that row, as measured.
bound: the largest e_r over B_r, the most that a correct kernel can have.
row: the largest e_r over E_r: a key lost in one row.
bulk: the root mean square of e_r over E_r: a small error everywhere.
slope: Σ ⟨e, y⟩ / E² over Σ ⟨y, y⟩ / E², with the result y of each row and its error E: a wrong scale.
u is the unit roundoff of the storage type."""


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Judge what an attention kernel (differential or plain) or a whole attention layer computed. FILE (safetensors "
        "or npz) holds its inputs (q, k, v, lambda_q1, ...) and its outputs: any of out, lse1, lse2 (lse of plain "
        "attention), and with dout also dq, dk, dv, dlambda_q1, ..."
    )
    parser.examples = """
refdiff check --spec hf_diffllama --layer 3 mine.safetensors
refdiff check --spec ms_v1 --set window=128 --print-spec mine.npz
"""
    parser.add_argument("file", metavar="FILE", nargs="?", help="inputs and outputs of the kernel")
    parser.add_argument("--inputs", action="store_true", help="list the arrays that FILE may hold")
    add_spec(parser, None, words=f"FILE's or {DEFAULT_SPEC}")
    parser.add_argument("--print-spec", action="store_true", help="print the spec as JSON")
    parser.add_argument(
        "--recipe",
        metavar="NAME_OR_FILE",
        default="auto",
        help="the kernel's types (default: FILE's or q's)",
    )
    parser.add_argument("--diagnose", action="store_true", help="name the mistake of a failure")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_common(parser, offline=False)
    parser.notes = [
        "Exit status: 0 passed; 1 not passed: fail, or inconclusive, which means that correct kernels differ too much "
        "on these inputs for a verdict; 2 error.",
        SPEC_NOTE + " Dimensions that the spec lacks are those of the arrays.",
        RECIPE_NOTE,
        NUMBERS_NOTE,
    ]


def run(args: argparse.Namespace) -> int:
    """Print the verdict, the spec or the page of inputs; 0 for a pass, 1 for another verdict."""
    if args.inputs:
        sys.stdout.write(inputs_page() + "\n")
        return 0
    if args.print_spec:
        if args.file is None:
            fields = preset_fields(argparse.Namespace(**{**vars(args), "spec": args.spec or DEFAULT_SPEC}))
        else:
            _, inputs, _, args = _read(args)
            fields = spec_of(args, inputs, source=args.file)[0].to_dict()
        print_report(fields)
        return 0
    if args.file is None:
        raise UsageError("FILE: got none, expected a file of inputs and outputs; --inputs lists what it may hold")
    return _check(args)


def _check(args: argparse.Namespace) -> int:
    outputs, inputs, dout, args = _read(args)
    if not outputs:
        raise UsageError(f"{args.file} holds {_names(inputs)}, but nothing to judge: out, lse1, dq, ...")
    spec, read = spec_of(args, inputs, source=args.file or "")
    recipe = recipe_of(args.recipe, inputs)
    from refdiff.oracle.printing import wrap_text
    from refdiff.oracle.verdict.check import check

    try:
        with waiting("judging", quiet=args.quiet):
            verdict = check(outputs, spec, inputs, recipe=recipe, dout=dout)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{args.file}: {error}{read}") from error
    report: dict[str, Any] = {"file": args.file, "spec": spec.to_dict(), **verdict.to_dict()}
    text = str(verdict)
    by_layer = spec.lambda_form == "exp" and spec.lambda_base != "constant"
    if verdict.status == "fail" and args.layer is None and by_layer:
        text += f"\nλ_init is that of layer {spec.layer}; --layer names another"
    if args.diagnose and verdict.status == "fail":
        from refdiff.oracle.diagnosis import diagnose

        with waiting("looking for the mistake", quiet=args.quiet):
            try:
                ranking = diagnose(outputs, spec, inputs, recipe=recipe, dout=dout)
                report["diagnosis"], named = ranking.to_dict(), str(ranking)
            except (ValueError, ArithmeticError) as error:  # the verdict stands, whether the mistake has a name or not
                report["diagnosis"], named = None, f"none ({error})"
        text = f"{text}\ndiagnosis: {named}"
    elif verdict.status == "fail":
        text += "\n--diagnose names the mistake"
    elif not verdict:
        text += "\ncorrect kernels differ too much on these inputs; judge the kernel by others, too"
    print_report(report, None if args.json else wrap_text(text))
    return 0 if verdict else 1


def _names(arrays: Collection[str]) -> str:
    """Return the names of arrays for a message, shortened if there are many."""
    first = sorted(arrays)[:MOST_NAMES]
    more = f" and {len(arrays) - len(first)} more" if len(arrays) > len(first) else ""
    return ", ".join(first) + more or "nothing"


def _read(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], Any, argparse.Namespace]:
    """Return outputs, inputs and `dout` of the file, and the options, with its header's spec and recipe by default."""
    from refdiff.oracle.inputs.arrays import OTHER_SUFFIXES, read_arrays

    path = args.file
    try:
        arrays, header = read_arrays(path)
    except CheckpointError as error:
        if Path(path).suffix in (".safetensors", ".npz", *OTHER_SUFFIXES) or not Path(path).is_file():
            raise
        raise UsageError(f"{path}: neither .safetensors nor .npz; write one, for instance with numpy.savez") from error
    outputs, inputs, dout = parts(arrays)
    if "q" not in inputs and "x" not in inputs:
        raise UsageError(
            f"{path} holds {_names(arrays)}, but no q and no x: it needs the inputs too; --inputs tells which"
        )
    spec = args.spec or header.get("spec", DEFAULT_SPEC)
    recipe = header.get("recipe", "auto") if args.recipe == "auto" else args.recipe
    return outputs, inputs, dout, argparse.Namespace(**{**vars(args), "spec": spec, "recipe": recipe})


def inputs_page() -> str:
    """Return the documentation of `refdiff.oracle.inputs`, 80 columns wide."""
    from refdiff.oracle import inputs

    blocks = (inputs.__doc__ or "").strip().split("\n\n")
    tables = [any(line.startswith("  ") for line in block.splitlines()) for block in blocks]
    return "\n\n".join(
        block if table else textwrap.fill(" ".join(block.split()), 80, break_on_hyphens=False)
        for block, table in zip(blocks, tables, strict=True)
    )
