"""`refdiff check`: a file with a kernel's inputs and outputs → pass, fail or inconclusive."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from refdiff import cluster
from refdiff.cli.flags import UsageError
from refdiff.cli.spec_and_recipe import recipe_of, spec_of
from refdiff.cli.terminal import note

if TYPE_CHECKING:
    from refdiff.oracle.spec import Spec

FIRST_SEED = 3000
"""Of the selftest: none on which anything was tuned."""
_OUTPUTS = ("out", "lse1", "lse2")


def run(args: argparse.Namespace) -> int:
    """Print the verdict, or the selftest's table; 0 for a pass, 1 for anything else."""
    if args.selftest == (args.file is not None):
        raise UsageError("give a FILE, or --selftest, and not both")
    if args.json and args.markdown:
        raise UsageError("give --json or --markdown, not both")
    if args.dask is not None and not args.selftest:
        raise UsageError("--dask goes with --selftest")
    if args.dask is not None and args.jobs > 1:
        raise UsageError("--jobs are processes of this machine, and --dask has its workers; use one of them")
    if args.selftest:
        return _selftest(args)
    from refdiff.oracle.check import check
    from refdiff.oracle.files import read_arrays

    arrays, _ = read_arrays(args.file)
    given, inputs, dout = parts(arrays)
    if "q" not in inputs and "x" not in inputs:
        raise UsageError(f"{args.file} holds {', '.join(sorted(arrays))}, but no q and no x: it needs the inputs too")
    if not given:
        raise UsageError(f"{args.file} holds {', '.join(sorted(arrays))}, but nothing to judge: out, lse1, dq, ...")
    spec = spec_of(args.spec, lambda _: _with_dimensions(args, inputs))
    recipe = recipe_of(str(inputs["q" if "q" in inputs else "x"].dtype) if args.recipe == "auto" else args.recipe)
    verdict = check(given, spec, inputs, recipe=recipe, dout=dout)
    report: dict[str, Any] = {"file": args.file, "spec": spec.to_dict(), **verdict.to_dict()}
    text = str(verdict)
    if args.diagnose and "out" in given and verdict.status == "fail":
        from refdiff.oracle.diagnosis import diagnose

        ranking = diagnose(given["out"], spec, inputs, recipe=recipe)
        report["diagnosis"] = ranking.to_dict()
        text = f"{text}\ndiagnosis: {ranking}"
    sys.stdout.write((json.dumps(report, ensure_ascii=False, indent=2) if args.json else text) + "\n")
    return 0 if verdict else 1


def parts(arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Split a file's arrays into what was computed, what it was computed from, and the gradient of the output.

    λ itself is an input where a kernel is given it: `lambda_full` is taken for what it computed beside λ's vectors or
    logits alone.
    """
    computed = any(name.startswith(("lambda_q", "lambda_k", "lambda_logits", "lambda_proj")) for name in arrays)
    outputs = (*_OUTPUTS, "lambda_full") if computed else _OUTPUTS
    given = {n: x for n, x in arrays.items() if n in outputs or (n.startswith("d") and n != "dout")}
    inputs = {n: x for n, x in arrays.items() if n not in given and n != "dout"}
    return given, inputs, arrays.get("dout")


def _with_dimensions(args: argparse.Namespace, inputs: dict[str, Any]) -> Spec:
    from refdiff.oracle.spec import Spec

    if "q" not in inputs:
        raise UsageError("--spec: the dimensions of a whole layer cannot be read off its arrays; give a JSON file")
    keys = inputs.get("k", inputs.get("k_pages"))
    if inputs["q"].ndim != 4 or keys is None or keys.ndim != 4:
        raise UsageError(f"q has shape {inputs['q'].shape}, but must be (B, H, T, d), and k (B, K, S, d)")
    dims = {"query_heads": inputs["q"].shape[1], "key_heads": keys.shape[1], "head_dim": inputs["q"].shape[3]}
    return Spec.preset(args.spec, **dims, layer=args.layer)


def _selftest(args: argparse.Namespace) -> int:
    from refdiff.oracle.selftest import page, selftest

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
