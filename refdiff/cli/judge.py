"""`refdiff judge`: a file with a kernel that somebody else submits → pass or fail, reached where it cannot reach."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.cli.flags import Number, UsageError, add_common, refuse
from refdiff.cli.output_files import check_place
from refdiff.cli.parser import Parser
from refdiff.cli.spec import PROFILE_NOTE, PROFILES, RECIPE_NOTE, SMALL_NOTE, add_profile, add_spec, recipe_of, spec_of
from refdiff.cli.terminal import print_report, waiting
from refdiff.messages import printable

if TYPE_CHECKING:
    from refdiff.oracle.diagnosis.ranking import Ranking
    from refdiff.oracle.submission.judging import JudgeReport


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Judge a kernel that somebody else submits. KERNEL is a file of Python with a function kernel(spec, inputs) or "
        "kernel(inputs), or a shared library (.so, .dylib) with a function of the type in refdiff_kernel.h. It runs in "
        "a process of its own, on inputs drawn for this run."
    )
    parser.examples = """
refdiff judge kernel.py --spec hf_diffllama --recipe bfloat16
refdiff judge kernel.py:attention --profile natural --profile tiles --json
refdiff judge kernel.so --symbol attend --spec attention
refdiff judge kernel.py --receipt gpu.safetensors
refdiff judge kernel.py --verify gpu.safetensors
"""
    parser.add_argument("file", metavar="KERNEL", help="the file, or FILE.py:FUNCTION")
    parser.add_argument("--symbol", metavar="NAME", help="function of a shared library (default: kernel)")
    parser.add_argument("--gradients", action="store_true", help="the symbol computes gradients too")
    add_spec(parser, "hf_diffllama", layer="2; in a JSON file: 0")
    parser.add_argument("--recipe", metavar="NAME_OR_FILE", default="float32", help="the kernel's types")
    add_profile(parser, "all")
    cases: dict[str, Any] = {"action": "append", "type": _size, "default": []}
    parser.add_argument("--size", metavar="BxTxS", help="a case of your own", **cases)
    parser.add_argument("-s", "--seed", type=Number(int, 0), metavar="N", help="seed of the inputs (default: drawn)")
    receipts = parser.add_argument_group("receipts").add_mutually_exclusive_group()
    receipts.add_argument("--receipt", type=Path, metavar="FILE", help="also write all outputs and hashes")
    receipts.add_argument("--verify", type=Path, metavar="FILE", help="judge a receipt, run nothing")
    limits = parser.add_argument_group("limits of the kernel's process")
    positive = Number(float, 0, above=True)
    limits.add_argument("--timeout", type=positive, default=60.0, metavar="SECONDS", help="per call")
    gib = Number(float, 0.1)  # with less, Python and NumPy themselves do not start
    limits.add_argument("--memory", type=gib, default=8.0, metavar="GIB", help="GiB of memory of all its processes")
    limits.add_argument("--allow-processes", action="store_true", help="let the kernel start processes")
    parser.add_argument("--diagnose", action="store_true", help="name the mistake of a failure")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_common(parser, offline=False)
    parser.notes = [
        "Exit status: 0 passed; 1 not passed; 2 error.",
        "The kernel is called four times per case: on three sets of numbers in the same memory, of which the third "
        "differs from the first in one array, then on the first again in another order. Some cases have sizes drawn at "
        "random. The expected output is computed after the kernel's process and all that it started have ended. The "
        "kernel may take dout=None and return gradients, and return NotImplemented for inputs that it does not serve. "
        "What it prints is dropped; its exceptions are shown.",
        "The kernel cannot import refdiff, start processes (Triton and torch.compile need --allow-processes), open "
        "connections or terminals, see other environment variables than those for libraries and GPUs, or write files "
        "outside its temporary folder. Landlock and seccomp of Linux enforce this; the report says which of them the "
        "system has. It stops known ways to cheat. It is no security boundary: run code that you do not trust in a "
        "container.",
        "--receipt writes a file for a machine without the GPU: --verify checks there, with the same options, that the "
        "kernel's file, those beside it and all inputs have the same SHA-256, and judges the outputs again. It cannot "
        "tell on which machine they were computed: sign the file, for example by ssh-keygen -Y sign.",
        SMALL_NOTE,
        RECIPE_NOTE,
        f"{PROFILE_NOTE}. --size is batch, queries and keys, such as 1x512x512.",
    ]


def _diagnosis(report: JudgeReport) -> Ranking | None:
    """Name the mistake in the smallest case whose outputs fail; None if no outputs do."""
    from refdiff.oracle.diagnosis import diagnose
    from refdiff.oracle.verdict.check import check

    failed = (run for run in report.runs if run.outputs and report.cases[run.name].status == "fail")
    for run in sorted(failed, key=lambda run: run.sets[0].dout.size):
        case, outputs = run.sets[0], run.outputs[0]
        dout = case.dout if report.gradients and not run.forward_only else None
        if check(outputs, case.spec, case.inputs, recipe=report.recipe, dout=dout).status == "fail":
            return diagnose(outputs, case.spec, case.inputs, recipe=report.recipe, dout=dout)
    return None


def _size(text: str) -> tuple[int, int, int]:
    if re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5}){2}", text):
        B, T, S = map(int, text.split("x"))
        return B, T, S
    raise argparse.ArgumentTypeError(f"got {text!r}, expected batch x queries x keys, such as 1x512x512")


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 for a pass, 1 for a fail."""
    from refdiff.oracle.cases.fixed import small_spec
    from refdiff.oracle.printing import wrap_text
    from refdiff.oracle.submission import judge_file
    from refdiff.oracle.submission.process import ProcessLimits
    from refdiff.oracle.submission.receipt import verify_receipt, write_receipt

    path, colon, function = args.file.rpartition(":")
    if not colon:
        path, function = args.file, args.symbol or "kernel"
    elif not function.isidentifier():
        raise UsageError(f"KERNEL: got {args.file!r}, expected FILE.py or FILE.py:FUNCTION, or a shared library")
    if colon or path.endswith(".py"):
        why = "for a shared library; FILE.py:FUNCTION names a function, which computes gradients if it takes dout"
        refuse(why, {"--symbol": args.symbol, "--gradients": args.gradients})
    if args.receipt:
        check_place("--receipt", args.receipt)
    spec, _ = spec_of(args, None, small_spec)
    recipe, profiles = recipe_of(args.recipe), args.profile or PROFILES
    what = ["starting the kernel"]
    extra: dict[str, Any] = {}
    with waiting(lambda: what[-1], quiet=args.quiet):
        if args.verify:
            asked: dict[str, Any] = {} if args.seed is None else {"seed": args.seed}
            asked |= {"function": function, "profiles": list(profiles), "sizes": [list(size) for size in args.size]}
            report, extra["receipt"] = verify_receipt(args.verify, path, spec, recipe, asked, doing=what.append)
        else:
            report = judge_file(
                path,
                spec,
                recipe=recipe,
                function=function,
                gradients=args.gradients,
                profiles=profiles,
                sizes=args.size,
                seed=args.seed,
                limits=ProcessLimits(args.timeout, int(args.memory * 2**30), args.allow_processes),
                doing=what.append,
            )
    text = str(report)
    if extra:
        run_on = ", ".join(f"{name} {x}" for name, x in extra["receipt"].items())
        text += printable(f"\nnot run here; as the receipt says, it ran on: {run_on}")
    elif not report:
        text += f"\n-s {report.seed} judges by the same numbers again"
    if args.diagnose and not report:
        with waiting("looking for the mistake", quiet=args.quiet):
            diagnosis = _diagnosis(report)
        extra["diagnosis"] = None if diagnosis is None else diagnosis.to_dict()
        text += "\nno outputs to diagnose" if diagnosis is None else f"\n{diagnosis}"
    elif not report and report.compared:
        text += "\n--diagnose names the mistake"
    if args.receipt:
        write_receipt(args.receipt, report)
    print_report({**report.to_dict(), **extra}, None if args.json else wrap_text(text))
    return 0 if report else 1
