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
from typing import Any

from refdiff import cluster
from refdiff.cli.flags import UsageError
from refdiff.cli.spec import parts, recipe_of, spec_of
from refdiff.cli.terminal import note

FIRST_SEED = 4000
"""Of the selftest: none on which anything was tuned."""


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
        raise UsageError("give a FILE, or --selftest, and not both; --inputs tells what a FILE holds")
    if args.json and args.markdown:
        raise UsageError("give --json or --markdown, not both")
    if args.dask is not None and not args.selftest:
        raise UsageError("--dask goes with --selftest")
    if args.dask is not None and args.jobs > 1:
        raise UsageError("--jobs are processes of this machine, and --dask has its workers; use one of them")
    if args.print_spec:
        raise UsageError("--print-spec goes with a FILE, or alone, but not with --selftest")
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
        verdict = check(given, spec, inputs, recipe=recipe, dout=dout)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{args.file}: {error}{read}") from error
    report: dict[str, Any] = {"file": args.file, "spec": spec.to_dict(), **verdict.to_dict()}
    text = str(verdict)
    if args.diagnose and verdict.status == "fail":
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


def _selftest_functions() -> tuple[Callable[..., str], Callable[..., Any]]:
    """`page` and `selftest`, which are part of the repository's tests and not of the installed package."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module("tests.oracle.selftest")
    except ModuleNotFoundError as error:
        raise UsageError("--selftest needs refdiff's repository: start it in the folder that holds tests/") from error
    return found.page, found.selftest


def _selftest(args: argparse.Namespace) -> int:
    page, selftest = _selftest_functions()
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    given = {"kernels": args.kernels, "jobs": args.jobs, "keep": args.keep, "done": lambda name: note(f"{name} done")}
    try:
        if args.dask is None:
            table = selftest(seeds, **given)
        else:
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
