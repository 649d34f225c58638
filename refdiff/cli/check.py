"""`refdiff check`: a file with a kernel's inputs and outputs → pass, fail or inconclusive."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.cli.flags import Number, UsageError, add_common, add_dask
from refdiff.cli.spec import RECIPE_NOTE, SPEC_NOTE, add_spec, parts, recipe_of, spec_of
from refdiff.cli.terminal import Waiting, note

if TYPE_CHECKING:
    from refdiff.cli.parser import Parser

FIRST_SEED = 4000
"""Of the selftest: none on which anything was tuned."""


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.description = (
        "Judge what a differential attention kernel, or a whole attention layer, computed. FILE (safetensors or npz) "
        "holds its inputs (q, k, v, lambda_q1, ...) and its outputs: any of out, lse1, lse2, and with dout also dq, "
        "dk, dv, dlambda_q1, ..."
    )
    parser.examples = """
refdiff check --spec hf_diffllama --layer 3 mine.safetensors
refdiff check --spec ms_v1 --set window=128 --print-spec mine.npz
refdiff check --selftest --seeds 20 --jobs 2 --state runs --markdown
"""
    parser.add_argument("file", metavar="FILE", nargs="?", help="inputs and outputs of the kernel")
    parser.add_argument("--inputs", action="store_true", help="list the arrays that FILE may hold (default: off)")
    add_spec(parser, "hf_diffllama")
    parser.add_argument("--print-spec", action="store_true", help="print the spec as JSON (default: off)")
    parser.add_argument(
        "--recipe", metavar="NAME_OR_FILE", default="auto", help="the kernel's types (default: that of q)"
    )
    parser.add_argument("--diagnose", action="store_true", help="name the mistake of a failure (default: off)")
    parser.add_argument("--json", action="store_true", help="print one JSON object (default: off)")
    selftest = parser.add_argument_group("selftest")
    selftest.add_argument("--selftest", action="store_true", help="test the tester itself (default: off)")
    number = Number(int, 1)
    selftest.add_argument("--seeds", type=number, default=1, metavar="N", help="number of seeds (default: 1)")
    selftest.add_argument("--jobs", type=number, default=1, metavar="N", help="seeds at a time (default: 1)")
    add_dask(selftest)
    state = selftest.add_argument(
        "--state", dest="keep", metavar="FOLDER", help="a file per seed, to resume from (default: none)"
    )
    parser.add_alias(state, "--keep")
    selftest.add_argument("--kernels", metavar="MODULE:NAME", help="correct kernels to judge too (default: none)")
    selftest.add_argument("--markdown", action="store_true", help="print a page, not a table (default: off)")
    add_common(parser, offline=False)
    parser.notes = [
        "Exit status: 0 passed; 1 not passed: fail, or inconclusive, where correct kernels differ so much on these "
        "inputs that they show nothing; 2 error. Of the selftest: 0 every mutant is caught and every correct kernel "
        "passes; 1 otherwise; 2 error.",
        SPEC_NOTE + " Dimensions that it lacks are read off the arrays.",
        RECIPE_NOTE,
        "--kernels tests.parity.real_kernels:KERNELS names a dict of functions.",
    ]


def run(args: argparse.Namespace) -> int:
    """Print the verdict, the selftest's table, the spec or the page of inputs; 0 for a pass, 1 for another verdict.

    Raises:
        UsageError: flags or a file that nothing can be judged by.
    """
    if args.inputs:
        sys.stdout.write(inputs_page() + "\n")
        return 0
    if args.print_spec and not args.selftest:
        inputs = None if args.file is None else _read(args.file)[1]
        spec, _ = spec_of(args, inputs, source=args.file or "")
        sys.stdout.write(json.dumps(spec.to_dict(), ensure_ascii=False, indent=2) + "\n")
        return 0
    if args.selftest == (args.file is not None):
        got = "both" if args.selftest else "neither"
        raise UsageError(f"FILE or --selftest: got {got}, expected one of them; --inputs lists what FILE may hold")
    if args.json and args.markdown:
        raise UsageError("--json, --markdown: got both, expected one of them")
    if args.dask is not None and not args.selftest:
        raise UsageError("--dask: goes with --selftest; add that, or leave --dask out")
    if args.dask is not None and args.jobs > 1:
        raise UsageError("--jobs, --dask: got both, expected one of them; --dask has workers of its own")
    if args.print_spec:
        raise UsageError("--print-spec: does not go with --selftest; leave one out")
    return _selftest(args) if args.selftest else _check(args)


def _check(args: argparse.Namespace) -> int:
    given, inputs, dout = _read(args.file)
    if not given:
        raise UsageError(f"{args.file} holds {', '.join(sorted(inputs))}, but nothing to judge: out, lse1, dq, ...")
    spec, read = spec_of(args, inputs, source=args.file or "")
    recipe = recipe_of(args.recipe, inputs)
    from refdiff.oracle.text_wrap import wrap_text
    from refdiff.oracle.verdict.check import check

    try:
        with Waiting("judging", quiet=args.quiet):
            verdict = check(given, spec, inputs, recipe=recipe, dout=dout)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{args.file}: {error}{read}") from error
    report: dict[str, Any] = {"file": args.file, "spec": spec.to_dict(), **verdict.to_dict()}
    text = str(verdict)
    if args.diagnose and verdict.status == "fail":
        with Waiting("looking for the mistake", quiet=args.quiet):
            report["diagnosis"], named = _diagnosis(given, spec, inputs, recipe, dout)
        text = f"{text}\ndiagnosis: {named}"
    sys.stdout.write((json.dumps(report, ensure_ascii=False, indent=2) if args.json else wrap_text(text)) + "\n")
    return 0 if verdict else 1


def _read(path: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    from refdiff.oracle.inputs.files import read_arrays

    arrays, _ = read_arrays(path)
    given, inputs, dout = parts(arrays)
    if "q" not in inputs and "x" not in inputs:
        raise UsageError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}, but no q and no x: it needs the inputs too; "
            "--inputs tells which"
        )
    return given, inputs, dout


def _diagnosis(given: dict[str, Any], *args: Any) -> tuple[Any, str]:
    """The name of the mistake, for a program and for people; the verdict stands, whether it has one or not."""
    from refdiff.oracle.diagnosis import diagnose

    spec, inputs, recipe, dout = args
    try:
        ranking = diagnose(given, spec, inputs, recipe=recipe, dout=dout)
    except (ValueError, ArithmeticError) as error:
        return None, f"none ({error})"
    return ranking.to_dict(), str(ranking)


def inputs_page() -> str:
    """What a file holds: the page of `refdiff.oracle.inputs`, 80 columns wide."""
    from refdiff.oracle import inputs

    blocks = (inputs.__doc__ or "").strip().split("\n\n")
    tables = [any(line.startswith("  ") for line in block.splitlines()) for block in blocks]
    return "\n\n".join(
        block if table else textwrap.fill(" ".join(block.split()), 80, break_on_hyphens=False)
        for block, table in zip(blocks, tables, strict=True)
    )


def _done(quiet: bool) -> Callable[[str], None]:
    return (lambda name: None) if quiet else (lambda name: note(f"{name} done"))


def _selftest_functions() -> tuple[Callable[..., str], Callable[..., Any]]:
    """`page` and `selftest`, which are part of the repository's tests and not of the installed package."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module("tests.oracle.selftest")
    except ModuleNotFoundError as error:
        raise UsageError("--selftest: needs refdiff's repository; start it in the folder that holds tests/") from error
    return found.page, found.selftest


def _selftest(args: argparse.Namespace) -> int:
    page, selftest = _selftest_functions()
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    given = {"kernels": args.kernels, "jobs": args.jobs, "keep": args.keep, "done": _done(args.quiet)}
    try:
        if args.dask is None:
            table = selftest(seeds, **given)
        else:
            from refdiff import cluster

            with cluster.connected(args.dask) as client:
                table = selftest(seeds, each=partial(cluster.each, client), **given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.json:
        text = json.dumps(table.to_dict(), indent=2)
    else:
        text = page(table, seeds, args.kernels) if args.markdown else str(table)
    sys.stdout.write(text + "\n")
    return 0 if table.holds else 1
