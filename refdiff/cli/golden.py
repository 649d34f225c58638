"""`refdiff golden`: write test vectors for kernels in any language, or judge a program's outputs by them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from refdiff.cli.flags import Number, UsageError, add_common, refuse
from refdiff.cli.output_files import check_folder
from refdiff.cli.parser import Parser
from refdiff.cli.spec import PROFILE_NOTE, RECIPE_NOTE, SMALL_NOTE, add_profile, add_spec, recipe_of, spec_of
from refdiff.cli.terminal import note, print_report, waiting, write_text

EXPORT_DEFAULTS: dict[str, Any] = {
    "spec": "hf_diffllama", "layer": None, "set": [], "recipe": "auto", "profile": None, "dtype": "auto", "core": False,
    "seed": 0, "no_gradients": False, "for": "vectors",
}  # fmt: skip
"""The options of export alone, and their defaults."""


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Write test vectors for kernels in any language (export), or judge what a program computed from them (verify)."
    )
    parser.examples = """
refdiff golden export vectors --spec hf_diffllama --recipe bfloat16
refdiff golden export vectors --spec ms_v1 --set window=5 --layer 3 --core
refdiff golden verify vectors outputs
refdiff golden export gguf --for llama.cpp --spec attention --set sinks=true
"""
    parser.add_argument("action", metavar="ACTION", choices=("export", "verify"), help="export or verify")
    parser.add_argument("folder", metavar="VECTORS", help="the folder of the vectors")
    parser.add_argument("outputs", nargs="?", metavar="OUTPUTS", help="verify: the folder of the program's outputs")
    export = parser.add_argument_group("export")
    add_spec(export, "hf_diffllama", layer="2; in a JSON file: 0")
    export.add_argument("--recipe", metavar="NAME_OR_FILE", help="the kernel's types (default: all of --dtype)")
    add_profile(export, "the first two")
    types = ("auto", "float32", "bfloat16", "float16")
    export.add_argument("--dtype", choices=types, metavar="TYPE", help="type of inputs")
    export.add_argument("--core", action="store_true", help="leave out cases of a whole layer")
    export.add_argument("-s", "--seed", type=Number(int, 0), metavar="N", help="seed of the numbers")
    export.add_argument("--no-gradients", action="store_true", help="outputs only")
    targets = ("vectors", "pytest", "llama.cpp", "flashinfer-trace")
    export.add_argument("--for", choices=targets, metavar="TARGET", help="who reads the files (default: vectors)")
    parser.set_defaults(**EXPORT_DEFAULTS)
    verify = parser.add_argument_group("verify")
    verify.add_argument("--diagnose", action="store_true", help="name the first failure's mistake")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    add_common(parser, offline=False)
    parser.notes = [
        "export writes inputs, correct results and error budgets as files; index.txt in VECTORS lists them. "
        "A case has a name such as discriminating-0-2x9x14-float32-0. For each case OUTPUTS holds "
        "<case>.safetensors or <case>.npz with out, and optionally dq, lse1, ...; or <case>.out.f32, <case>.dq.f32, "
        "..., raw float32, little-endian, in row-major order. A case whose out is not there counts as missing.",
        "--for pytest adds a test that needs NumPy and pytest alone; llama.cpp writes GGUF files, flashinfer-trace "
        "definitions and workloads of the core from rotated q and k (--set rope=none). Cases that a form has no place "
        "for are left out.",
        "Exit status of verify: 0 all passed; 1 not passed; 2 error.",
        SMALL_NOTE,
        RECIPE_NOTE + " --dtype auto is what --recipe stores, or float32.",
        f"{PROFILE_NOTE}; the default is the first two. --core is for a kernel that starts from q, k and v.",
    ]


def run(args: argparse.Namespace) -> int:
    """Write vectors and print their folder, or print the report; the exit status of a report that is no pass is 1."""
    return _export(args) if args.action == "export" else _verify(args)


def _export(args: argparse.Namespace) -> int:
    refuse(
        "only for verify; export takes VECTORS alone",
        {f"OUTPUTS {args.outputs}": args.outputs is not None, "--diagnose": args.diagnose, "--json": args.json},
    )
    folder = Path(args.folder)
    if folder.exists() and not folder.is_dir():
        kind = "a file" if folder.is_file() else "a device or a pipe"
        raise UsageError(f"VECTORS {folder}: got {kind}, expected a folder; name another")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"VECTORS {folder}: got a folder with files, expected a new or empty one")
    check_folder("VECTORS", folder)
    from refdiff.oracle import golden
    from refdiff.oracle.cases.fixed import cases, small_spec
    from refdiff.oracle.inputs import is_layer

    target = getattr(args, "for")
    spec, _ = spec_of(args, None, small_spec)
    recipe = None if args.recipe == "auto" else recipe_of(args.recipe)
    dtype = args.dtype if args.dtype != "auto" else "float32" if recipe is None else recipe.storage
    profiles = dict.fromkeys(args.profile or ("discriminating", "tiny_values"))
    with waiting("computing the vectors", quiet=args.quiet):
        made = [case for name in profiles for case in cases(name, args.seed, spec=spec, dtype=dtype)]
        if args.core:
            made = [case for case in made if not is_layer(case.inputs)]
        try:
            left = golden.export(args.folder, made, recipe=recipe, gradients=not args.no_gradients, target=target)
        except ValueError as error:
            raise UsageError(f"--for {target}: {error}") from None
    if not args.quiet:
        note(f"{len(made) - len(left)} cases of layer {spec.layer}{f'; left out: {len(left)}' if left else ''}")
    write_text(f"{args.folder}\n")
    return 0


def _verify(args: argparse.Namespace) -> int:
    if args.outputs is None:
        raise UsageError("OUTPUTS: got none, expected the folder of what your program computed")
    refuse(
        "only for export; verify judges by what VECTORS were written for",
        {f"--{n.replace('_', '-')}": getattr(args, n) != default for n, default in EXPORT_DEFAULTS.items()},
    )
    from refdiff.oracle import golden

    with waiting("judging", quiet=args.quiet):
        report = golden.verify(args.folder, args.outputs, diagnose=args.diagnose)
    failed = not args.diagnose and any(verdict.status == "fail" for verdict in report.cases.values())
    text = str(report) + ("\n--diagnose names the mistake of the first failure" if failed else "")
    print_report(report.to_dict(), None if args.json else text)
    return int(not report)
