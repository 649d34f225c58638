"""`verify`: judge by test vectors what a program computed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.files import check_name, read_bytes, read_text
from refdiff.messages import show_name
from refdiff.oracle.diagnosis import Ranking
from refdiff.oracle.diagnosis import diagnose as find_mistake
from refdiff.oracle.golden.write import FORMAT, INDEX, case_file, seal_index
from refdiff.oracle.inputs.arrays import read_arrays
from refdiff.oracle.printing import wrap_text
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.verdict.check import check
from refdiff.oracle.verdict.verdict import FAIL, INCONCLUSIVE, PASS, Verdict

Numpy = np.ndarray[Any, Any]
LARGEST_INDEX = 10_000_000
"""The most bytes that are read of an index."""
DAMAGE = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError, StopIteration)
"""What reading a file raises whose contents are not as written."""


@dataclass(frozen=True)
class Report:
    """The result of `verify`.

    cases: the verdict on each case that has an output. missing: cases without an output. unjudged: for each case with a
    verdict, the tensors that the outputs lack. diagnosis: of the first failing case, if requested. layers: those of the
    test vectors' specs.
    """

    cases: dict[str, Verdict]
    missing: tuple[str, ...]
    unjudged: dict[str, tuple[str, ...]]
    diagnosis: dict[str, Ranking]
    layers: tuple[int, ...]

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
        layers = ", ".join(map(str, self.layers))
        lines = [f"{self.status}: cases with an output: {len(self.cases)}; tensors judged: {judged}; layer {layers}"]
        if self.missing:
            lines.append(f"missing: no out in .safetensors, .npz or .out.f32 of {', '.join(self.missing)}")
        if absent := Counter(name for names in self.unjudged.values() for name in names):
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
            "missing": list(self.missing),
            "unjudged": {name: list(tensors) for name, tensors in self.unjudged.items()},
            "cases": {name: verdict.to_dict() for name, verdict in self.cases.items()},
            "diagnosis": {name: ranking.to_dict() for name, ranking in self.diagnosis.items()},
        }


def verify(path: str | os.PathLike[str], outputs_dir: str | os.PathLike[str], *, diagnose: bool = False) -> Report:
    """Judge the outputs that a program computed from test vectors, as `check` does.

    Args:
        path: a folder that `export` wrote.
        outputs_dir: for each case `<id>.safetensors` or `<id>.npz` with `out` and optionally `dq`, `lse1`, …; or raw
            float32 files `<id>.out.f32`.
        diagnose: name the mistake of the first failing case.

    Raises:
        CheckpointError: there is no index, or a file of the test vectors was changed; there is no folder of outputs; or
            an output cannot be read, has a wrong shape or an unknown name, or a case has outputs in two formats.
    """
    folder, outputs = Path(path), Path(outputs_dir)
    if not outputs.is_dir():
        raise CheckpointError(f"{outputs}: no folder of outputs")
    verdicts: dict[str, Verdict] = {}
    missing, unjudged, layers = [], {}, set()
    diagnosis: dict[str, Ranking] = {}
    for name, (size, crc, tensors) in _read_index(folder).items():
        file = folder / case_file(name)
        data = read_bytes(file, max_bytes=size, folder=folder)
        with _refusing(f"{file}: its bytes have been changed", "export the files again"):
            if (len(data), f"{zlib.crc32(data):08x}") != (size, crc):
                raise ValueError("CRC-32 is not the index's")
            arrays, metadata = read_arrays(file, folder=folder)
            spec, recipe = Spec(**json.loads(metadata["spec"])), Recipe(**json.loads(metadata["recipe"]))
            shapes = {tensor: arrays[f"expected.{tensor}"].shape for tensor in tensors}
        layers.add(spec.layer)
        given = _read_outputs(outputs, name, shapes)
        if "out" not in given:
            missing.append(name)
            continue
        inputs = {of.removeprefix("inputs."): x for of, x in arrays.items() if of.startswith("inputs.")}
        dout = inputs.pop("dout", None)
        dout = dout if any(tensor.startswith("d") for tensor in given) else None
        with _refusing(name, "give what the case asks for"):
            verdicts[name] = check(given, spec, inputs, recipe=recipe, dout=dout)
            if diagnose and not diagnosis and verdicts[name].status == FAIL:
                diagnosis[name] = find_mistake(given, spec, inputs, recipe=recipe, dout=dout)
        if absent := tuple(tensor for tensor in tensors if tensor not in given):
            unjudged[name] = absent
    return Report(verdicts, tuple(missing), unjudged, diagnosis, tuple(sorted(layers)))


def _read_index(folder: Path) -> dict[str, tuple[int, str, list[str]]]:
    """Read an index: the bytes and the CRC-32 of each case's file, and the names of its judged tensors.

    Raises:
        CheckpointError: there is none, it is of another version, or it was changed.
    """
    path = folder / INDEX
    first, _, rest = read_text(path, max_bytes=LARGEST_INDEX, folder=folder).partition("\n")
    if not first.startswith(f"{FORMAT} "):
        raise CheckpointError(f"{path}: got {show_name(first[:30])}, expected {FORMAT!r}; export the files again")
    with _refusing(f"{path}: its text has been changed", "export the files again"):
        cases: dict[str, tuple[int, str, list[str]]] = {}
        tensors: list[str] = []
        for line in rest.splitlines():
            kind, name, *words = line.split()
            if kind == "case":
                check_name(folder, case_file(name))
                tensors = []
                cases[name] = int(words[1]), words[2], tensors
            elif kind != "input":
                tensors.append(kind)
        if not cases or seal_index(rest, len(cases)) != f"{first}\n{rest}".encode():
            raise ValueError("its CRC-32 or number of cases is not that of its first line")
        return cases


@contextlib.contextmanager
def _refusing(start: str, fix: str) -> Iterator[None]:
    """Turn exceptions into a `CheckpointError`: a CRC-32 does not rule out that somebody wrote other things."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{start}: {error or type(error).__name__}; {fix}") from error


def _read_outputs(folder: Path, name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Numpy]:
    """Read the outputs of one case, in the order of `shapes`; a raw file has one tensor in float32, little-endian."""
    raw = {tensor: file for tensor in shapes if (file := folder / f"{name}.{tensor}.f32").is_file()}
    files = [file for kind in ("safetensors", "npz") if (file := folder / f"{name}.{kind}").is_file()]
    files += list(raw.values())[:1]
    if len(files) > 1:
        raise CheckpointError(f"{files[0]}: {name} has outputs in {files[1].name} too; leave one of them")
    found = read_arrays(files[0])[0] if files and not raw else {}
    for tensor, file in raw.items():
        size, expected = file.stat().st_size, 4 * math.prod(shapes[tensor])
        if size != expected:
            raise CheckpointError(
                f"{file}: got {size} bytes, expected {expected}: {tensor} has the shape {shapes[tensor]}, in float32"
            )
        found[tensor] = np.fromfile(file, "<f4").reshape(shapes[tensor])
    return {tensor: found[tensor] for tensor in (*shapes, *found) if tensor in found}
