"""Receipts: what a kernel returned on one machine, such as one with a GPU, which another machine judges once more.

A receipt is a file of JSON: the machine, versions, the SHA-256 of the kernel's file and of the inputs of each case, the
outputs and their SHA-256, and the report. It proves that these outputs are right, and not where they come from: that is
for a signature to say, such as that of `ssh-keygen -Y sign`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.files import read_bytes, replace_atomically
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.submission.child import FLOATS, dtype_of
from refdiff.oracle.submission.judging import JudgeReport, Numpy, Run, coverage_reasons, draw_runs, judge_runs

FORMAT = "refdiff-receipt 1"
LARGEST = 2**30
"""The most bytes of a receipt; one of all profiles, with gradients, has some 30 million."""
PACKAGES = ("refdiff", "numpy", "torch", "triton", "jax", "jaxlib", "cupy-cuda12x", "mlx")
"""The packages whose versions a receipt has, as far as they are installed."""


def write_receipt(path: str | os.PathLike[str], report: JudgeReport) -> None:
    """Write what the kernel of a report returned, and on which machine."""
    receipt = {
        "format": FORMAT,
        "machine": {"gpus": gpus(), "processor": platform.processor() or platform.machine(), "os": platform.platform()},
        "versions": {"python": platform.python_version(), **_versions()},
        "kernel_sha256": hashlib.sha256(Path(report.kernel).read_bytes()).hexdigest(),
        "asked": report.asked,
        "report": report.to_dict(),
        "cases": {run.name: _case(run) for run in report.runs},
    }
    with replace_atomically(path) as file:
        file.write(json.dumps(receipt, indent=1).encode())


def verify_receipt(
    path: str | os.PathLike[str],
    kernel: str | os.PathLike[str],
    spec: Spec,
    recipe: Recipe,
    asked: Mapping[str, Any],
    doing: Callable[[str], None] = lambda what: None,
) -> tuple[JudgeReport, dict[str, Any]]:
    """Judge the outputs of a receipt here, without running the kernel; return the report, and the machine and versions.

    The report fails if the kernel's file, or the inputs of a case as they are drawn here, have another hash.

    Args:
        path: the receipt.
        kernel: the kernel's file.
        spec: what must be computed; the receipt must be of this spec.
        recipe: where the kernel rounds; likewise.
        asked: the function, profiles and sizes, and a seed if it must be that; likewise.
        doing: called with a line of text at each step.

    Raises:
        ValueError: the file is no receipt, or one of another spec, recipe or choice of cases.
    """
    data = read_bytes(path, max_bytes=LARGEST)
    try:
        receipt = json.loads(data)
        told, recorded, seed = receipt["report"], receipt["cases"], int(receipt["report"]["seed"])
        machine = {**receipt["machine"], **receipt["versions"]}
        given = {"spec": told["spec"], "recipe": told["recipe"], "seed": seed, **receipt["asked"]}
        gradients, expected = bool(told["gradients"]), {"spec": spec.to_dict(), "recipe": recipe.to_dict(), **asked}
        if receipt["format"] != FORMAT:
            raise ValueError(f"got format {receipt['format']!r}, expected {FORMAT!r}")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: no receipt of refdiff judge: {error}") from None
    for name, x in json.loads(json.dumps(expected)).items():
        if given.get(name) != x:
            raise ValueError(f"{path}: the receipt is of {name} {given.get(name)}, expected {x}, as named here")
    reasons = list(map(str, told["reasons"]))
    if receipt["kernel_sha256"] != hashlib.sha256(Path(kernel).read_bytes()).hexdigest():
        reasons.append(f"{kernel} is not the file of the receipt: its SHA-256 differs")
    runs = draw_runs(spec, recipe.storage, seed, np.random.default_rng([seed, 5]), asked["profiles"], asked["sizes"])
    for run in runs:
        try:
            _fill(run, recorded[run.name])
        except KeyError as error:
            reasons.append(f"{run.name}: the receipt lacks {error}")
        except (TypeError, ValueError, OverflowError) as error:
            reasons.append(f"{run.name}: {error}")
    found = judge_runs(runs, recipe, gradients, doing)
    reasons = list(dict.fromkeys([*reasons, *coverage_reasons(found)]))
    left, confinement = len(runs) - len(found), tuple(map(str, told["confinement"]))
    report = JudgeReport(str(kernel), spec, recipe, seed, found, tuple(reasons), gradients, left, confinement, asked)
    return report, machine


def gpus() -> list[str]:
    """Return the name and driver of each GPU of Nvidia."""
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _versions() -> dict[str, str]:
    installed = {name for name in PACKAGES if any(metadata.distributions(name=name))}
    return {name: metadata.version(name) for name in PACKAGES if name in installed}


def _digest(sets: Iterable[Mapping[str, Numpy]]) -> str:
    """Return the SHA-256 of names, types, shapes and numbers."""
    found = hashlib.sha256()
    for arrays in sets:
        for name, x in sorted(arrays.items()):
            found.update(json.dumps([name, x.dtype.name, x.shape]).encode() + x.tobytes())
    return found.hexdigest()


def _inputs_digest(run: Run) -> str:
    return _digest({**numbers.inputs, "dout": numbers.dout} for numbers in run.sets)


def _case(run: Run) -> dict[str, Any]:
    outputs = [
        [[name, x.dtype.name, x.shape, base64.b64encode(x.tobytes()).decode()] for name, x in arrays.items()]
        for arrays in run.outputs
    ]
    hashes = {"inputs_sha256": _inputs_digest(run), "outputs_sha256": _digest(run.outputs)}
    flags = {"problem": run.problem, "declined": run.declined, "forward_only": run.forward_only}
    return {**hashes, **flags, "outputs": outputs}


def _fill(run: Run, case: Mapping[str, Any]) -> None:
    """Give a run the calls that a receipt has.

    Raises:
        ValueError: a hash differs, or an array is none.
    """
    if case["inputs_sha256"] != _inputs_digest(run):
        raise ValueError("its inputs, drawn here, have another SHA-256: another version of refdiff or NumPy drew them")
    outputs = []
    for arrays in case["outputs"]:
        if not all(dtype in FLOATS for _, dtype, _, _ in arrays):
            raise ValueError(f"the type of an output is not one of {', '.join(FLOATS)}")
        outputs.append(
            {str(n): np.frombuffer(base64.b64decode(x), dtype_of(t)).reshape(shape) for n, t, shape, x in arrays}
        )
    if case["outputs_sha256"] != _digest(outputs):
        raise ValueError("its outputs have another SHA-256 than the receipt says")
    run.problem, run.declined = str(case["problem"]), case["declined"] is True
    run.forward_only = case["forward_only"] is True and "k_pages" in run.sets[0].inputs
    run.outputs = tuple(outputs) if len(outputs) == len(run.sets) else ()
