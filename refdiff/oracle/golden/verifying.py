"""A folder of outputs against a folder of test vectors, from the files alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.oracle.any_array import any_array
from refdiff.oracle.files import read_arrays
from refdiff.oracle.golden.manifest import read_manifest
from refdiff.oracle.judge import judge_lse, judge_rows, judge_sums
from refdiff.oracle.statistics import RowBudget
from refdiff.oracle.verdict import FAIL, INCONCLUSIVE, PASS, TensorVerdict, Verdict

Numpy = np.ndarray[Any, Any]
RAW = ".f32"
"""The suffix of raw outputs: float32, little-endian, in the order of the axes, one file `<case>.<tensor>.f32` each."""


@dataclass(frozen=True)
class Report:
    """What `verify` found: the verdict on each case, cases without outputs, and what was changed in the vectors."""

    cases: dict[str, Verdict]
    missing: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def status(self) -> str:
        """ "fail" where something fails, is missing or has been changed; else "inconclusive" where a case is."""
        found = {verdict.status for verdict in self.cases.values()}
        if self.missing or self.changed or not self.cases or FAIL in found:
            return FAIL
        return INCONCLUSIVE if INCONCLUSIVE in found else PASS

    def __bool__(self) -> bool:
        return self.status == PASS

    def __str__(self) -> str:
        lines = [f"{self.status}: {len(self.cases)} cases"]
        lines += [f"changed: {line}" for line in self.changed]
        lines += [f"missing: {name}: no output" for name in self.missing]
        for name, verdict in self.cases.items():
            lines += ["", f"{name}: {verdict}"] if verdict.status != PASS else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "status": self.status,
            "changed": list(self.changed),
            "missing": list(self.missing),
            "cases": {name: verdict.to_dict() for name, verdict in self.cases.items()},
        }


def verify(path: str | os.PathLike[str], outputs_dir: str | os.PathLike[str]) -> Report:
    """Judge the outputs of a program by the test vectors that it was given.

    Args:
        path: a folder that `export` has written.
        outputs_dir: for each case `<id>.safetensors` or `<id>.npz` with `out`, and `dq`, `lse1`, … if you like; or raw
            float32 as `<id>.out.f32`.

    Raises:
        CheckpointError: there is no manifest, or an output is broken, of another shape, or has an unknown name.
    """
    folder, outputs = Path(path), Path(outputs_dir)
    manifest, changed = read_manifest(folder)
    broken = {line.partition(":")[0] for line in changed}
    cases, missing = {}, []
    for case in manifest["cases"]:
        if case["file"] in broken:
            continue
        arrays, _ = read_arrays(folder / case["file"])
        given = _outputs(outputs, case, arrays)
        if "out" not in given:
            missing.append(case["id"])
            continue
        verdicts = {name: _judge(name, case, arrays, x) for name, x in given.items()}
        cases[case["id"]] = Verdict(verdicts, case["recipe"]["storage"])
    return Report(cases, tuple(missing), tuple(changed))


def _outputs(folder: Path, case: dict[str, Any], arrays: dict[str, Numpy]) -> dict[str, Numpy]:
    """The outputs of one case, by the tensor's name, in float64."""
    name = case["id"]
    found: dict[str, Numpy] = {}
    for suffix in (".safetensors", ".npz"):
        if (folder / f"{name}{suffix}").is_file():
            found |= read_arrays(folder / f"{name}{suffix}")[0]
    known = {tensor["name"]: arrays[f"expected.{tensor['name']}"].shape for tensor in case["judged"]}
    for tensor, shape in known.items():
        raw = folder / f"{name}.{tensor}{RAW}"
        if tensor not in found and raw.is_file():
            numbers = np.frombuffer(raw.read_bytes(), "<f4")
            if numbers.size != np.prod(shape, dtype=int):
                raise CheckpointError(f"{raw}: {numbers.size} numbers of float32, but {tensor} has the shape {shape}")
            found[tensor] = numbers.reshape(shape)
    for tensor, x in found.items():
        if tensor not in known:
            raise CheckpointError(f"{name}: {tensor!r} is nothing that is judged: there are {', '.join(known)}")
        if x.shape != known[tensor]:
            raise CheckpointError(f"{name}: {tensor} has shape {x.shape}, but must be {known[tensor]}")
    return {tensor: any_array(x, tensor).astype(np.float64) for tensor, x in found.items()}


def _judge(name: str, case: dict[str, Any], arrays: dict[str, Numpy], actual: Numpy) -> TensorVerdict:
    of = next(tensor for tensor in case["judged"] if tensor["name"] == name)
    expected = arrays[f"expected.{name}"].astype(np.float64)
    rows = arrays[f"budget.{name}"].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if of["kind"] == "numbers":
            return (judge_lse if name.startswith("lse") else judge_sums)(name, actual, expected, rows)
        doubtful = np.isinf(rows)
        limits = RowBudget(
            expected, np.where(doubtful, 0.0, rows), arrays[f"bound.{name}"].astype(np.float64), of["legal_slope"],
            of["storage"], of["axes"], doubtful, of["relative_to"],
        )  # fmt: skip
        return judge_rows(name, actual, limits)
