"""`verify`: judge by test vectors what a program computed, as `check` does."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.oracle.diagnosis import Ranking
from refdiff.oracle.diagnosis import diagnose as find_mistake
from refdiff.oracle.golden.write import case_file
from refdiff.oracle.inputs.arrays import read_arrays
from refdiff.oracle.printing import wrap_text
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.verdict.check import check
from refdiff.oracle.verdict.verdict import FAIL, INCONCLUSIVE, PASS, Verdict

Numpy = np.ndarray[Any, Any]
DAMAGE = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError)
"""What judging raises if a file holds other things than an export writes."""


@dataclass(frozen=True)
class Report:
    """The result of `verify`.

    cases: the verdict on each case that has an output. missing: cases without an output. diagnosis: of the first
    failing case, if requested.
    """

    cases: dict[str, Verdict]
    missing: tuple[str, ...]
    diagnosis: dict[str, Ranking]

    @property
    def status(self) -> str:
        """ "fail" if a case fails or is missing; else "inconclusive" if a case is; else "pass"."""
        found = {verdict.status for verdict in self.cases.values()}
        if self.missing or FAIL in found:
            return FAIL
        return INCONCLUSIVE if INCONCLUSIVE in found else PASS

    def __bool__(self) -> bool:
        return self.status == PASS

    def __str__(self) -> str:
        judged = sum(len(verdict.tensors) for verdict in self.cases.values())
        lines = [f"{self.status}: cases with an output: {len(self.cases)}; tensors judged: {judged}"]
        if self.missing:
            lines.append(f"missing: no out in .safetensors, .npz or .out.f32 of {', '.join(self.missing)}")
        for name, verdict in self.cases.items():
            lines += ["", f"{name}:", str(verdict)] if verdict.status != PASS else []
            lines += [f"diagnosis: {self.diagnosis[name]}"] if name in self.diagnosis else []
        return wrap_text("\n".join(lines))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values of JSON."""
        return {
            "status": self.status,
            "missing": list(self.missing),
            "cases": {name: verdict.to_dict() for name, verdict in self.cases.items()},
            "diagnosis": {name: ranking.to_dict() for name, ranking in self.diagnosis.items()},
        }


def verify(path: str | os.PathLike[str], outputs_dir: str | os.PathLike[str], *, diagnose: bool = False) -> Report:
    """Judge the outputs that a program computed from test vectors, as `check` does.

    Args:
        path: a folder that `export` wrote for the target "vectors" or "pytest".
        outputs_dir: for each case `<id>.safetensors` or `<id>.npz` with `out` and optionally `dq`, `lse1`, …; or raw
            float32 files `<id>.out.f32`.
        diagnose: name the mistake of the first failing case.

    Raises:
        CheckpointError: there are no test vectors or no folder of outputs; or a file cannot be read, has a wrong shape
            or an unknown name.
    """
    folder, outputs = Path(path), Path(outputs_dir)
    if not (files := sorted(folder.glob(case_file("*")))):
        raise CheckpointError(f"{folder}: no test vectors; write some with refdiff golden export")
    if not outputs.is_dir():
        raise CheckpointError(f"{outputs}: no folder of outputs")
    verdicts: dict[str, Verdict] = {}
    diagnosis: dict[str, Ranking] = {}
    missing = []
    for file in files:
        name = file.stem.removeprefix("case_")
        arrays, metadata = read_arrays(file, folder=folder)
        parts = {kind: {of.removeprefix(kind): x for of, x in arrays.items() if of.startswith(kind)}
                 for kind in ("inputs.", "expected.")}  # fmt: skip
        given = _read_outputs(outputs, name, {tensor: x.shape for tensor, x in parts["expected."].items()})
        if "out" not in given:
            missing.append(name)
            continue
        inputs = parts["inputs."]
        dout = inputs.pop("dout", None)
        dout = dout if any(tensor.startswith("d") for tensor in given) else None
        try:
            spec, recipe = Spec(**json.loads(metadata["spec"])), Recipe(**json.loads(metadata["recipe"]))
            verdicts[name] = check(given, spec, inputs, recipe=recipe, dout=dout)
            if diagnose and not diagnosis and verdicts[name].status == FAIL:
                diagnosis[name] = find_mistake(given, spec, inputs, recipe=recipe, dout=dout)
        except DAMAGE as error:
            raise CheckpointError(f"{name}: cannot be judged: {error or type(error).__name__}") from error
    return Report(verdicts, tuple(missing), diagnosis)


def _read_outputs(folder: Path, name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Numpy]:
    """Read the outputs of one case; a raw file has one tensor in float32, little-endian."""
    files = [file for kind in ("safetensors", "npz") if (file := folder / f"{name}.{kind}").is_file()]
    found = read_arrays(files[0])[0] if files else {}
    for tensor, shape in shapes.items():
        if not (file := folder / f"{name}.{tensor}.f32").is_file():
            continue
        if files:
            raise CheckpointError(f"{files[0]}: {name} has outputs in {file.name} too; leave one of them")
        if (size := file.stat().st_size) != (expected := 4 * math.prod(shape)):
            raise CheckpointError(
                f"{file}: got {size} bytes, expected {expected}: {tensor} has the shape {shape}, in float32"
            )
        found[tensor] = np.fromfile(file, "<f4").reshape(shape)
    return found
