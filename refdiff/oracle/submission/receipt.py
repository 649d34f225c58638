"""Receipts: what a kernel returned on one machine, such as one with a GPU, which another machine judges once more.

A receipt is a safetensors file of the outputs. Its metadata has the machine, versions, the SHA-256 of the kernel's file
and of the Python files and libraries beside it, that of the inputs of each case, and the report. It proves that these
outputs are right, and not where they come from: that is for a signature to say, such as that of `ssh-keygen -Y sign`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.oracle.inputs.arrays import read_arrays, write_arrays
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.submission.judging import JudgeReport, Run, coverage_reasons, draw_runs, judge_runs

FORMAT = "refdiff-receipt 3"
PACKAGES = ("refdiff", "numpy", "torch", "triton", "jax", "jaxlib", "cupy-cuda12x", "mlx")
"""The packages whose versions a receipt has, as far as they are installed."""
FLAGS = ("problem", "declined", "forward_only")
"""The fields of a `Run` that only calls can show."""


def write_receipt(path: str | os.PathLike[str], report: JudgeReport) -> None:
    """Write what the kernel of a report returned, and on which machine."""
    receipt = {
        "format": FORMAT,
        "machine": {"gpus": gpus(), "processor": platform.processor() or platform.machine(), "os": platform.platform()},
        "versions": {"python": platform.python_version(), **_versions()},
        "files_sha256": _hashes(Path(report.kernel)),
        "asked": report.asked,
        "report": report.to_dict(),
        "cases": {run.name: {name: getattr(run, name) for name in FLAGS} | _digest(run) for run in report.runs},
    }
    outputs = {f"{run.name}/{n}/{name}": x for run in report.runs for n, arrays in enumerate(run.outputs)
               for name, x in arrays.items()}  # fmt: skip
    write_arrays(path, outputs, {"receipt": json.dumps(receipt)})


def verify_receipt(
    path: str | os.PathLike[str],
    kernel: str | os.PathLike[str],
    spec: Spec,
    recipe: Recipe,
    asked: Mapping[str, Any],
    doing: Callable[[str], None] = lambda what: None,
) -> tuple[JudgeReport, dict[str, Any]]:
    """Judge the outputs of a receipt here, without running the kernel; return the report, and the machine and versions.

    The report fails if a file of the kernel, or the inputs of a case as they are drawn here, have another hash.

    Args:
        path: the receipt.
        kernel: the kernel's file.
        spec: what must be computed; the receipt must be of this spec.
        recipe: where the kernel rounds; likewise.
        asked: the function, profiles and sizes, and a seed if it must be that; likewise.
        doing: called with a line of text at each step.

    Raises:
        CheckpointError: the file cannot be read.
        ValueError: the file is no receipt, or one of another spec, recipe or choice of cases.
    """
    arrays, header = read_arrays(path)
    try:
        receipt = json.loads(header["receipt"])
        told, recorded, seed = receipt["report"], receipt["cases"], int(receipt["report"]["seed"])
        known = {"kernel": "", **receipt["files_sha256"]}
        machine = {**receipt["machine"], **receipt["versions"]}
        given = {"spec": told["spec"], "recipe": told["recipe"], "seed": seed, **receipt["asked"]}
        gradients, expected = bool(told["gradients"]), {"spec": spec.to_dict(), "recipe": recipe.to_dict(), **asked}
        reasons, confinement = list(map(str, told["reasons"])), tuple(map(str, told["confinement"]))
        if receipt["format"] != FORMAT:
            raise ValueError(f"got format {receipt['format']!r}, expected {FORMAT!r}")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: no receipt of refdiff judge: {error}") from None
    for name, x in json.loads(json.dumps(expected)).items():
        if given.get(name) != x:
            raise ValueError(f"{path}: the receipt is of {name} {given.get(name)}, expected {x}, as named here")
    hashes = _hashes(Path(kernel))
    names = (str(kernel) if name == "kernel" else name for name, x in known.items() if hashes.get(name) != x)
    reasons += [f"{name} is not the file of the receipt: its SHA-256 differs" for name in names]
    runs = draw_runs(spec, recipe.storage, seed, np.random.default_rng([seed, 5]), asked["profiles"], asked["sizes"])
    for run in runs:
        case = recorded.get(run.name) if isinstance(recorded, dict) else None
        if not isinstance(case, dict) or not case.keys() >= {*FLAGS}:
            reasons.append(f"{run.name}: the receipt lacks it")
        elif {"inputs_sha256": case.get("inputs_sha256")} != _digest(run):
            more = "another version of refdiff or NumPy drew them"
            reasons.append(f"{run.name}: its inputs, drawn here, have another SHA-256: {more}")
        else:
            run.problem, run.declined = str(case["problem"]), case["declined"] is True
            run.forward_only = case["forward_only"] is True and "k_pages" in run.sets[0].inputs
            starts = [f"{run.name}/{n}/" for n in range(len(run.sets))]
            found = tuple({n.removeprefix(s): x for n, x in arrays.items() if n.startswith(s)} for s in starts)
            run.outputs = found if all(found) else ()
    outcomes = judge_runs(runs, recipe, gradients, doing)
    reasons = list(dict.fromkeys([*reasons, *coverage_reasons(outcomes)]))
    left = len(runs) - len(outcomes)
    report = JudgeReport(str(kernel), spec, recipe, seed, outcomes, tuple(reasons), gradients, left, confinement, asked)
    return report, machine


def gpus() -> list[str]:
    """Return the name and driver of each GPU of Nvidia."""
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _hashes(kernel: Path) -> dict[str, str]:
    """Return the SHA-256 of the kernel's file, as "kernel", and of the Python files and libraries in its folder."""
    beside = {file.name: file for kind in ("*.py", "*.so") for file in kernel.parent.glob(kind) if file.is_file()}
    files = {"kernel": kernel, **{name: file for name, file in beside.items() if name != kernel.name}}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def _versions() -> dict[str, str]:
    installed = {name for name in PACKAGES if any(metadata.distributions(name=name))}
    return {name: metadata.version(name) for name in PACKAGES if name in installed}


def _digest(run: Run) -> dict[str, str]:
    """Return the SHA-256 of the names, types, shapes and numbers of a run's inputs."""
    found = hashlib.sha256()
    for numbers in run.sets:
        for name, x in sorted({**numbers.inputs, "dout": numbers.dout}.items()):
            found.update(json.dumps([name, x.dtype.name, x.shape]).encode() + x.tobytes())
    return {"inputs_sha256": found.hexdigest()}
