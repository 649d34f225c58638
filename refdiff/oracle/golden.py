"""Test vectors for kernels in any language: files with inputs, expected outputs and error budgets.

    from refdiff import oracle

    oracle.golden.export("vectors", oracle.cases("discriminating", dtype="bfloat16"))
    # your program reads vectors/case_*.safetensors and writes outputs/<case>.safetensors, or <case>.out.f32
    print(oracle.golden.verify("vectors", "outputs", diagnose=True))   # `check` of each case

The guide `refdiff/oracle/guides/vectors.md` describes the files, and the rule by which a program can judge itself.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.files import check_name, new_folder, read_bytes, read_text, replace_atomically
from refdiff.messages import show_name
from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.budget.statistics import LIMITS, factor_limit, slope_limit, uncertain_share
from refdiff.oracle.cases.fixed import Case
from refdiff.oracle.diagnosis import Ranking
from refdiff.oracle.diagnosis import diagnose as find_mistake
from refdiff.oracle.inputs.arrays import read_arrays, safetensors_bytes
from refdiff.oracle.printing import wrap_text
from refdiff.oracle.rounding import FORMATS, round_to
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.verdict.check import check
from refdiff.oracle.verdict.verdict import FAIL, INCONCLUSIVE, PASS, Verdict

__all__ = ["Report", "export", "verify"]
Numpy = np.ndarray[Any, Any]
FORMAT = "refdiff-golden 4"
INDEX = "index.txt"
LARGEST_INDEX = 10_000_000
"""The most bytes that are read of an index."""
OFFSETS = {"hi": "expected.{}.hi", "lo": "expected.{}.lo", **{n: f"{n}.{{}}" for n in ("budget", "weights", "divisor")}}
"""The columns of the index with the byte offset of an array, and the array's name."""
COLUMNS = (
    "hi", "lo", "budget", "u", "row", "bulk", "element", "slope", "factor", "weights", "divisor", "half", "certain",
)  # fmt: skip
"""The columns of a tensor's line in the index after its name, kind, n and width."""


def export(
    path: str | os.PathLike[str], cases: Iterable[Case], *, recipe: Recipe | str | None = None, gradients: bool = True
) -> None:
    """Write cases as test vectors for any language; the same cases give the same bytes of inputs.

    Args:
        path: the folder, created if it does not exist; the cases of an earlier export are replaced or removed.
        cases: from `oracle.cases`.
        recipe: where the kernels round; None is the usual recipe of each case's dtype.
        gradients: also write the expected gradients for the gradient `dout` of the output.

    Raises:
        OSError: the disk is full or not writable; an earlier export stays as it was.
        ValueError: there are no cases, or two have the same name.
    """
    named = [(re.sub(r"[^A-Za-z0-9_.-]", "_", case.name).strip(".") or "case", case) for case in cases]
    if not named:
        raise ValueError("cases: got none, expected at least one; take them from oracle.cases")
    if twice := sorted(name for name, count in Counter(name for name, _ in named).items() if count > 1):
        raise ValueError(f"two cases have one name: {twice}")
    folder = Path(path)
    earlier = set(folder.glob(_case_file("*"))) if (folder / INDEX).is_file() else set()
    with new_folder(folder), contextlib.ExitStack() as written:  # files are replaced at the end, the index last
        index = written.enter_context(replace_atomically(folder / INDEX))
        text = ""
        for name, case in named:
            data, lines = _build_case(name, case, Recipe.of(recipe or case.dtype), gradients)
            file = written.enter_context(replace_atomically(folder / _case_file(name)))
            file.write(data)
            file.flush()
            text += lines
        index.write(seal_index(text, len(named)))
    for unused in earlier - {folder / _case_file(name) for name, _ in named}:
        unused.unlink()


def seal_index(text: str, cases: int) -> bytes:
    """Return an index: its first line, with the CRC-32 of the other lines, and these lines."""
    return f"{FORMAT} {cases} {zlib.crc32(text.encode()):08x}\n{text}".encode()


def _case_file(name: str) -> str:
    return f"case_{name}.safetensors"


def _build_case(name: str, case: Case, recipe: Recipe, gradients: bool) -> tuple[bytes, str]:
    """Return the bytes of a case's file and its lines of the index."""
    inputs = {**case.inputs, **({"dout": case.dout} if gradients else {})}
    found = budget(case.spec, case.inputs, recipe, dout=inputs.get("dout"))
    arrays: dict[str, Numpy] = {f"inputs.{of}": np.asarray(x) for of, x in inputs.items()}
    limits = {tensor: _add_judged_tensor(tensor, found, arrays) for tensor in found.names}
    metadata = {"spec": json.dumps(case.spec.to_dict()), "recipe": json.dumps(recipe.to_dict())}
    data = b"".join(safetensors_bytes(arrays, {"format": FORMAT, **metadata}))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    begin = {of: start + header[of]["data_offsets"][0] for of in arrays}
    lines = [f"case {name} {_case_file(name)} {len(data)} {zlib.crc32(data):08x} {len(limits)}"]
    for tensor, columns in limits.items():
        columns |= {column: begin.get(key.format(tensor), 0) for column, key in OFFSETS.items()}
        kind, width = ("rows", arrays[f"expected.{tensor}"].shape[-1]) if tensor in found.tensors else ("numbers", 1)
        numbers = " ".join(f"{columns[column]:.17g}" for column in COLUMNS)
        lines.append(f"{tensor} {kind} {arrays[f'budget.{tensor}'].size} {width} {numbers}")
    for of, x in inputs.items():
        sizes = " ".join(map(str, (x.ndim, *x.shape)))
        lines.append(f"input {of} {x.dtype.name} {begin[f'inputs.{of}']} {sizes}")
    return data, "".join(f"{line}\n" for line in lines)


@np.errstate(over="ignore", invalid="ignore")
def _add_judged_tensor(name: str, found: Budget, arrays: dict[str, Numpy]) -> dict[str, float]:
    """Add the arrays of one judged tensor to `arrays`; return its limits."""
    limits = {**dict.fromkeys(COLUMNS, 0.0), "u": found.recipe.u, "row": 1.0}
    padded = found.padded(name)
    if (tensor := found.tensors.get(name)) is None:
        expected, allowed = found.absolute(name)
        limits["certain"] = found.judge({name: expected}).status == PASS
    else:
        expected, allowed = tensor.expected, np.where(tensor.doubtful, np.inf, tensor.rows)
        padded = None if padded is None else padded[..., 0]
        weights = 0.0 if tensor.factor is None else tensor.factor.weights
        divisor = None if tensor.factor is None else tensor.factor.divisor
        arrays[f"weights.{name}"] = np.broadcast_to(weights, allowed.shape).astype(np.float32)
        each = np.broadcast_to(1.0 if divisor is None else divisor, expected.shape[-1:])
        arrays[f"divisor.{name}"] = each.astype(np.float32)
        limits |= {"u": tensor.u, "row": LIMITS.row, "bulk": LIMITS.bulk, "element": LIMITS.element}
        limits |= {"slope": slope_limit(tensor), "factor": factor_limit(tensor), "half": (divisor is not None) / 2}
        limits["certain"] = uncertain_share(tensor) <= LIMITS.share
    allowed = np.where(False if padded is None else padded, np.inf, allowed)
    arrays[f"budget.{name}"] = np.broadcast_to(allowed, expected.shape[: allowed.ndim]).astype(np.float32)
    arrays[f"expected.{name}"] = np.asarray(expected, dtype=np.float64)
    arrays[f"expected.{name}.hi"], arrays[f"expected.{name}.lo"] = _split_float64(expected, found.recipe.storage)
    return limits


def _split_float64(x: Numpy, storage: str) -> tuple[Numpy, Numpy]:
    """Split float64 numbers into sums of two float32 numbers, `hi` + `lo`.

    hi is infinite where the number overflows the storage type. lo is NaN where the number is so near to the largest of
    the type that correct kernels may overflow or not.
    """
    stored = round_to(np.asarray(x, dtype=np.float64), storage)
    hi = np.where(np.isfinite(stored), x, stored).astype(np.float32)
    lo = np.where(np.isfinite(hi), x - hi.astype(np.float64), 0.0)
    top = FORMATS[storage].top * (1 - 2 * FORMATS[storage].u)
    edge = np.isfinite(stored) ^ (np.abs(x) < top)
    return hi, np.where(edge & ~np.isnan(x), math.nan, lo).astype(np.float32)


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
        file = folder / _case_file(name)
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
                check_name(folder, _case_file(name))
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
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RecursionError,
        StopIteration,
    ) as error:
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
