"""Judge a folder of outputs against a folder of test vectors."""

from __future__ import annotations

import functools
import glob
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.files import check_name, open_file
from refdiff.oracle.budget.statistics import CommonFactor, RowBudget
from refdiff.oracle.diagnosis import Ranking
from refdiff.oracle.diagnosis import diagnose as find_mistake
from refdiff.oracle.golden.writing import MANIFEST, read_manifest, reporting_malformed
from refdiff.oracle.inputs.arrays import read_arrays
from refdiff.oracle.inputs.outputs import read_output, to_float64
from refdiff.oracle.printing import wrap_text
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.verdict.judge import judge_lse, judge_rows, judge_sums
from refdiff.oracle.verdict.rounded_factor import allow_rounded_factor
from refdiff.oracle.verdict.verdict import FAIL, INCONCLUSIVE, PASS, TensorVerdict, Verdict

Numpy = np.ndarray[Any, Any]
RAW = ".f32"
"""The suffix of raw outputs: `<case>.<tensor>.f32` has one tensor, float32, little-endian, in row-major order."""


@dataclass(frozen=True)
class Report:
    """The result of `verify`.

    cases: the verdict on each case that has an output. missing: cases without an output. changed: files of the test
    vectors that are not as they were written. unjudged: for each case with a verdict, the tensors that the outputs
    lack. diagnosis: of the first failing case, if requested. layers: those of the test vectors' specs.
    """

    cases: dict[str, Verdict]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    unjudged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    diagnosis: dict[str, Ranking] = field(default_factory=dict)
    layers: tuple[int, ...] = ()

    @property
    def status(self) -> str:
        """ "fail" if a case fails or is missing, or a file was changed; else "inconclusive" if a case is."""
        found = {verdict.status for verdict in self.cases.values()}
        if self.missing or self.changed or not self.cases or FAIL in found:
            return FAIL
        return INCONCLUSIVE if INCONCLUSIVE in found else PASS

    def __bool__(self) -> bool:
        return self.status == PASS

    def __str__(self) -> str:
        judged = sum(len(verdict.tensors) for verdict in self.cases.values())
        layers = f"; layer {', '.join(map(str, self.layers))}" if self.layers else ""
        lines = [f"{self.status}: cases with an output: {len(self.cases)}; tensors judged: {judged}{layers}"]
        lines += [f"changed: {line}" for line in self.changed]
        if self.missing:
            first, *more = self.missing
            lines.append(f"missing: {first}: no out in {first}.safetensors, {first}.npz or {first}.out.f32")
            lines += [f"missing too: {', '.join(more)}"] if more else []
        absent = Counter(name for names in self.unjudged.values() for name in names)
        if absent:
            names = [name if n == len(self.cases) else f"{name} in {n} of them" for name, n in absent.items()]
            lines.append(f"not given, so not judged: {', '.join(names)}")
        for name, verdict in self.cases.items():
            lines += ["", f"{name}:", str(verdict)] if verdict.status != PASS else []
            lines += [f"diagnosis: {self.diagnosis[name]}"] if name in self.diagnosis else []
        return wrap_text("\n".join(lines))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values of JSON."""
        return {
            "status": self.status,
            "changed": list(self.changed),
            "missing": list(self.missing),
            "unjudged": {name: list(tensors) for name, tensors in self.unjudged.items()},
            "cases": {name: verdict.to_dict() for name, verdict in self.cases.items()},
            "diagnosis": {name: ranking.to_dict() for name, ranking in self.diagnosis.items()},
        }


def verify(path: str | os.PathLike[str], outputs_dir: str | os.PathLike[str], *, diagnose: bool = False) -> Report:
    """Judge the outputs that a program computed from test vectors.

    Args:
        path: a folder that `export` wrote.
        outputs_dir: for each case `<id>.safetensors` or `<id>.npz` with `out` and optionally `dq`, `lse1`, …; or raw
            float32 files `<id>.out.f32`.
        diagnose: name the mistake of the first failing case.

    Raises:
        CheckpointError: there is no manifest or no folder of outputs; or an output cannot be read, has a wrong shape or
            an unknown name, or is in two files.
    """
    folder, outputs = Path(path), Path(outputs_dir)
    if not outputs.is_dir():
        raise CheckpointError(f"{outputs}: no folder of outputs")
    manifest, changed = read_manifest(folder)
    with reporting_malformed(folder / MANIFEST):
        return _judge_all(folder, outputs, manifest, changed, diagnose=diagnose)


def _judge_all(folder: Path, outputs: Path, manifest: dict[str, Any], changed: list[str], *, diagnose: bool) -> Report:
    broken = {line.partition(":")[0] for line in changed}
    ids = [case["id"] for case in manifest["cases"]]
    cases, missing, unjudged = {}, [], {}
    diagnosis: dict[str, Ranking] = {}
    for case in manifest["cases"]:
        if case["file"] in broken:
            continue
        check_name(outputs, case["id"])
        arrays, _ = read_arrays(folder / case["file"], folder=folder)
        given = _read_outputs(_output_files(outputs, case["id"], ids), case, arrays)
        if "out" not in given:
            missing.append(case["id"])
            continue
        cases[case["id"]] = _judge_case(case, arrays, given)
        if absent := tuple(tensor["name"] for tensor in case["judged"] if tensor["name"] not in given):
            unjudged[case["id"]] = absent
        if diagnose and not diagnosis and cases[case["id"]].status == FAIL:
            diagnosis[case["id"]] = _diagnosis(case, arrays, given)
    layers = tuple(sorted({case["spec"]["layer"] for case in manifest["cases"]}))
    return Report(cases, tuple(missing), tuple(changed), unjudged, diagnosis, layers)


def _judge_case(case: dict[str, Any], arrays: dict[str, Numpy], given: dict[str, Numpy]) -> Verdict:
    judge = functools.partial(_judge_tensor, case, arrays)
    verdicts = {name: judge(name, x) for name, x in given.items()}
    spec, recipe = Spec(**case["spec"]), Recipe(**case["recipe"])
    verdicts, notes = allow_rounded_factor(spec, recipe, given, verdicts, judge)
    return Verdict(verdicts, recipe.name, notes)


def _diagnosis(case: dict[str, Any], arrays: dict[str, Numpy], given: dict[str, Numpy]) -> Ranking:
    inputs = {name.removeprefix("inputs."): x for name, x in arrays.items() if name.startswith("inputs.")}
    dout = inputs.pop("dout", None)
    return find_mistake(given, Spec(**case["spec"]), inputs, recipe=Recipe(**case["recipe"]), dout=dout)


def _read_outputs(files: list[Path], case: dict[str, Any], arrays: dict[str, Numpy]) -> dict[str, Numpy]:
    """Read the outputs of one case, by the tensor's name, in float64."""
    name = case["id"]
    found: dict[str, Numpy] = {}
    known = {tensor["name"]: arrays[f"expected.{tensor['name']}"].shape for tensor in case["judged"]}
    for file in files:
        given = {file.name[len(name) + 1 : -len(RAW)]: None} if file.suffix == RAW else read_arrays(file)[0]
        for tensor, x in given.items():
            if tensor not in known:
                raise CheckpointError(f"{file}: {tensor!r} is no judged tensor: there are {', '.join(known)}")
            if tensor in found:
                raise CheckpointError(f"{file}: another file of {name} has {tensor} too; leave one of them")
            found[tensor] = _read_raw(file, tensor, known[tensor]) if x is None else x
    for tensor, x in found.items():
        if x.shape != known[tensor]:
            raise CheckpointError(f"{name}: {tensor}: got shape {x.shape}, expected {known[tensor]}")
    present = [tensor for tensor in known if tensor in found]
    return {tensor: to_float64(read_output(found[tensor], f"{name}: {tensor}")) for tensor in present}


def _output_files(folder: Path, case: str, ids: list[str]) -> list[Path]:
    """List the files with outputs of a case; `ids` are all cases, since one's name may begin with another's."""
    longer = tuple(f"{other}." for other in ids if other.startswith(f"{case}."))
    raw = [path for path in folder.glob(f"{glob.escape(case)}.*{RAW}") if not path.name.startswith(longer)]
    whole = [folder / f"{case}.safetensors", folder / f"{case}.npz"]
    return [path for path in (*whole, *sorted(raw)) if path.is_file()]


def _read_raw(path: Path, tensor: str, shape: tuple[int, ...]) -> Numpy:
    with open_file(path) as file:
        size, numbers = os.fstat(file.fileno()).st_size, math.prod(shape)
        if size != 4 * numbers:
            raise CheckpointError(
                f"{path}: {size} bytes, but {tensor} has the shape {shape}, in float32 {4 * numbers} bytes"
            )
        data = file.read(size)
    return np.frombuffer(data, "<f4").reshape(shape)


def _judge_tensor(case: dict[str, Any], arrays: dict[str, Numpy], name: str, actual: Numpy) -> TensorVerdict:
    limits = next(tensor for tensor in case["judged"] if tensor["name"] == name)
    expected = arrays[f"expected.{name}"].astype(np.float64)
    rows = arrays[f"budget.{name}"].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if limits["kind"] == "numbers":
            return (judge_lse if name.startswith("lse") else judge_sums)(name, actual, expected, rows)
        doubtful = np.isinf(rows)
        if limits["certain"]:  # only few rows, or padding, have an infinite budget: count them as correct
            actual, doubtful = np.where(doubtful[..., None], expected, actual), np.zeros_like(doubtful)
            rows = np.where(np.isinf(rows), 0.0, rows)
        budget = RowBudget(
            expected, np.where(doubtful, 0.0, rows), arrays[f"bound.{name}"].astype(np.float64), limits["legal_slope"],
            limits["storage"], limits["axes"], doubtful, limits["relative_to"], _factor(limits, arrays, name),
        )  # fmt: skip
        return judge_rows(name, actual, budget)


def _factor(limits: dict[str, Any], arrays: dict[str, Numpy], name: str) -> CommonFactor | None:
    if limits["factor_spread"] is None:
        return None
    weights, divisor = (arrays[f"{part}.{name}"].astype(np.float64) for part in ("weights", "divisor"))
    return CommonFactor(weights, limits["factor_spread"], divisor if limits["half"] else None)
