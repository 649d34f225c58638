"""Receipts: what a kernel returned on one machine, such as one with a GPU, which another machine judges once more.

A receipt is a file of JSON: the machine, versions, the SHA-256 of the kernel's file and of what it imports from its
folder, that of the inputs of each case, the outputs and their SHA-256, and the report. It proves that these outputs are
right, and not where they come from: that is for a signature to say, such as that of `ssh-keygen -Y sign`.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.files import read_bytes, replace_atomically
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.submission.child import FLOATS, dtype_of
from refdiff.oracle.submission.judging import JudgeReport, Numpy, Run, coverage_reasons, draw_runs, judge_runs

FORMAT = "refdiff-receipt 2"
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
        "files_sha256": _hashes(Path(report.kernel)),
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
        known = dict(receipt["files_sha256"])
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
    hashes = _hashes(Path(kernel))
    differ = sorted(name for name in {*hashes, *known} if hashes.get(name) != known.get(name))
    names = (str(kernel) if name == "kernel" else name for name in differ)
    reasons += [f"{name} is not the file of the receipt: its SHA-256 differs" for name in names]
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


def _hashes(kernel: Path) -> dict[str, str]:
    """Return the SHA-256 of the kernel's file, as "kernel", and of the modules of its folder that it needs."""
    found: dict[str, str] = {}
    waiting = {"kernel": kernel}
    while waiting:
        file, path = waiting.popitem()
        data = path.read_bytes()
        found[file] = hashlib.sha256(data).hexdigest()
        for name in _imports(data, path.relative_to(kernel.parent).parent.parts) if path.suffix == ".py" else ():
            near = kernel.parent.joinpath(*name)
            files = near.with_name(near.name + ".py"), near / "__init__.py", *near.parent.glob(f"{near.name}.*.so")
            near_files = {x.relative_to(kernel.parent).as_posix(): x for x in files if x.is_file() and x != kernel}
            waiting |= {file: x for file, x in near_files.items() if file not in found}
    return found


def _imports(source: bytes, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the names, split at dots, of what a module of a package imports, and of the packages around it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a file that no longer is Python has another hash too
        return
    for node in ast.walk(tree):
        names: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            start += tuple((node.module or "").split(".")) if node.module else ()
            names = [(*start, alias.name) for alias in node.names]
        yield from (name[:n] for name in names for n in range(1, len(name) + 1))


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
