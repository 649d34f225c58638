"""`refdiff golden`: write test vectors for kernels in any language, or judge a program's outputs by them."""

from __future__ import annotations

import argparse
import json
import sys

from refdiff.cli.flags import UsageError
from refdiff.cli.golden_flags import OF_EXPORT
from refdiff.cli.spec import recipe_of, spec_of


def run(args: argparse.Namespace) -> int:
    """Write vectors and print their folder, or print the report; the exit status of a report that is no pass is 1.

    Raises:
        UsageError: flags that do not fit together.
        CheckpointError: vectors or outputs that cannot be read.
    """
    return _export(args) if args.action == "export" else _verify(args)


def _export(args: argparse.Namespace) -> int:
    if args.outputs is not None or args.json:
        raise UsageError("export takes VECTORS alone; OUTPUTS and --json are for verify")
    from refdiff.oracle import golden
    from refdiff.oracle.cases.fixed import cases, small_spec
    from refdiff.oracle.inputs import is_layer

    spec, _ = spec_of(args, None, small_spec)
    recipe = None if args.recipe == "auto" else recipe_of(args.recipe)
    dtype = args.dtype if args.dtype != "auto" else "float32" if recipe is None else recipe.storage
    profiles = dict.fromkeys(args.profile or ("discriminating", "tiny_values"))
    made = [case for name in profiles for case in cases(name, args.seed, spec=spec, dtype=dtype)]
    if args.core:
        made = [case for case in made if not is_layer(case.inputs)]
    formats = ("safetensors", "npz") if args.npz else ("safetensors",)
    golden.export(args.folder, made, formats, recipe=recipe, gradients=not args.no_gradients)
    sys.stdout.write(f"{args.folder}\n")
    return 0


def _verify(args: argparse.Namespace) -> int:
    if args.outputs is None:
        raise UsageError("verify needs OUTPUTS, the folder of what your program computed")
    if flags := [f"--{n.replace('_', '-')}" for n, default in OF_EXPORT.items() if getattr(args, n) != default]:
        raise UsageError(f"{', '.join(flags)}: for export alone; verify judges by what VECTORS were written for")
    from refdiff.oracle import golden

    report = golden.verify(args.folder, args.outputs)
    text = json.dumps(report.to_dict(), ensure_ascii=False, indent=2, allow_nan=False) if args.json else str(report)
    sys.stdout.write(text + "\n")
    return int(not report)
