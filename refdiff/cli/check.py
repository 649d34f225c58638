"""`refdiff check`: a file with a kernel's inputs and outputs → pass, fail or inconclusive."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from refdiff.cli.flags import Number, UsageError, add_common, refuse
from refdiff.cli.parser import Parser
from refdiff.cli.spec import RECIPE_NOTE, SPEC_NOTE, add_spec, parts, preset_fields, recipe_of, spec_of
from refdiff.cli.terminal import minutely, note, print_report, progress_bar, waiting
from refdiff.errors import CheckpointError

MOST_NAMES = 12
"""So many arrays of a file are named in an error."""
NUMBERS_NOTE = """\
The numbers of a tensor are value/limit; a value above its limit fails. A row is one vector along the last axis; \
e_r is its error, a root mean square. E_r is the error that correct kernels have in that row, as measured.
bound: the largest e_r over B_r, the most that a correct kernel can have.
row: the largest e_r over E_r: a key lost in one row.
bulk: the root mean square of e_r over E_r: a small error everywhere.
element: the largest error of one number over its allowance: one wrong number.
slope: ⟨e, y⟩ over ⟨y, y⟩, with the result y of all rows: a wrong scale.
factor: the same, weighted by row: a wrong scale where some rows are noisy.
u is the unit roundoff of the storage type."""
FIRST_SEED = 4000
"""Of the selftest: none on which anything was tuned."""


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Judge what an attention kernel (differential or plain) or a whole attention layer computed. FILE (safetensors "
        "or npz) holds its inputs (q, k, v, lambda_q1, ...) and its outputs: any of out, lse1, lse2 (lse of plain "
        "attention), and with dout also dq, dk, dv, dlambda_q1, ..."
    )
    parser.examples = """
refdiff check --spec hf_diffllama --layer 3 mine.safetensors
refdiff check --spec ms_v1 --set window=128 --print-spec mine.npz
refdiff check --selftest --seeds 20 --jobs 2 --state runs --markdown
"""
    parser.add_argument("file", metavar="FILE", nargs="?", help="inputs and outputs of the kernel")
    parser.add_argument("--inputs", action="store_true", help="list the arrays that FILE may hold")
    add_spec(parser, "hf_diffllama")
    parser.add_argument("--print-spec", action="store_true", help="print the spec as JSON")
    parser.add_argument(
        "--recipe", metavar="NAME_OR_FILE", default="auto", help="the kernel's types (default: that of q)"
    )
    parser.add_argument("--diagnose", action="store_true", help="name the mistake of a failure")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    selftest = parser.add_argument_group("selftest")
    selftest.add_argument("--selftest", action="store_true", help="test check with known kernels")
    number = Number(int, 1)
    selftest.add_argument("--seeds", type=number, default=1, metavar="N", help="number of seeds")
    selftest.add_argument("--jobs", type=number, default=1, metavar="N", help="seeds at a time")
    state = selftest.add_argument("--state", dest="keep", metavar="FOLDER", help="a file per seed, to resume from")
    parser.add_alias(state, "--keep")
    selftest.add_argument("--kernels", metavar="MODULE:NAME", help="correct kernels to judge too")
    selftest.add_argument("--markdown", action="store_true", help="print a page, not a table")
    add_common(parser, offline=False)
    parser.notes = [
        "Exit status: 0 passed; 1 not passed: fail, or inconclusive, which means that correct kernels differ too much "
        "on these inputs for a verdict; 2 error. With --selftest: 0 if enough wrong kernels fail and every correct one "
        "passes, 1 otherwise, 2 error; its last lines say how many of each are expected. It needs a clone of refdiff.",
        SPEC_NOTE + " Dimensions that the spec lacks are those of the arrays.",
        RECIPE_NOTE,
        NUMBERS_NOTE,
        "--kernels tests.parity.real_kernels:KERNELS names a dict of functions.",
    ]


def run(args: argparse.Namespace) -> int:
    """Print the verdict, the selftest's table, the spec or the page of inputs; 0 for a pass, 1 for another verdict."""
    if args.inputs:
        sys.stdout.write(inputs_page() + "\n")
        return 0
    if args.print_spec and not args.selftest:
        if args.file is None:
            fields = preset_fields(args)
        else:
            fields = spec_of(args, _read(args.file)[1], source=args.file)[0].to_dict()
        print_report(fields)
        return 0
    if args.selftest == (args.file is not None):
        got = "both" if args.selftest else "neither"
        raise UsageError(f"FILE or --selftest: got {got}, expected one of them; --inputs lists what FILE may hold")
    if args.json and args.markdown:
        raise UsageError("--json, --markdown: got both, expected one of them")
    if not args.selftest:
        used = {"--seeds": args.seeds > 1, "--jobs": args.jobs > 1, "--state": args.keep, "--kernels": args.kernels}
        refuse(
            "no effect without --selftest; add that, or leave {} out",
            {**used, "--markdown": args.markdown},
        )
    if args.print_spec:
        raise UsageError("--print-spec: does not go with --selftest; leave one out")
    return _selftest(args) if args.selftest else _check(args)


def _check(args: argparse.Namespace) -> int:
    outputs, inputs, dout = _read(args.file)
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


def _read(path: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    from refdiff.oracle.inputs.arrays import OTHER_SUFFIXES, read_arrays

    try:
        arrays, _ = read_arrays(path)
    except CheckpointError as error:
        if Path(path).suffix in (".safetensors", ".npz", *OTHER_SUFFIXES) or not Path(path).is_file():
            raise
        raise UsageError(f"{path}: neither .safetensors nor .npz; write one, for instance with numpy.savez") from error
    outputs, inputs, dout = parts(arrays)
    if "q" not in inputs and "x" not in inputs:
        raise UsageError(
            f"{path} holds {_names(arrays)}, but no q and no x: it needs the inputs too; --inputs tells which"
        )
    return outputs, inputs, dout


def inputs_page() -> str:
    """Return the documentation of `refdiff.oracle.inputs`, 80 columns wide."""
    from refdiff.oracle import inputs

    blocks = (inputs.__doc__ or "").strip().split("\n\n")
    tables = [any(line.startswith("  ") for line in block.splitlines()) for block in blocks]
    return "\n\n".join(
        block if table else textwrap.fill(" ".join(block.split()), 80, break_on_hyphens=False)
        for block, table in zip(blocks, tables, strict=True)
    )


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[dict[str, Callable[..., None]]]:
    """Yield callbacks for the progress of the selftest: a bar on a terminal, else a line per minute."""
    due = minutely()
    with progress_bar(quiet=quiet, unit="case") as bar:

        def done(name: str) -> None:
            if not quiet:
                bar.write(f"{name} done", file=sys.stderr)

        def progress(count: int, total: int) -> None:
            bar.total = total
            bar.update(count - bar.n)
            if bar.disable and not quiet and due():
                note(f"{count} of {total} cases")

        if not quiet:
            bar.write("each seed has 16 cases of recipe and profile, and takes some minutes", file=sys.stderr)
        yield {"done": done, "progress": progress}


def _selftest(args: argparse.Namespace) -> int:
    if str(Path.cwd()) not in sys.path:  # it is part of the repository's tests and not of the installed package
        sys.path.insert(0, str(Path.cwd()))
    try:
        tests = importlib.import_module("tests.oracle.selftest")
    except ModuleNotFoundError as error:
        raise UsageError("--selftest: needs refdiff's repository; start it in the folder that holds tests/") from error
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    options = {"kernels": args.kernels, "jobs": args.jobs, "keep": args.keep}
    try:
        with _progress(args.quiet) as reported:
            table = tests.selftest(seeds, **options, **reported)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.json:
        text = json.dumps(table.to_dict(), indent=2)
    else:
        text = tests.page(table, seeds, args.kernels) if args.markdown else str(table)
    sys.stdout.write(text + "\n")
    return 0 if table.holds else 1
