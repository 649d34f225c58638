"""Test vectors for kernels in any language: files with inputs, expected outputs and error budgets.

    from refdiff import oracle

    oracle.golden.export("vectors", oracle.cases("discriminating", dtype="bfloat16"))
    # your program reads vectors/case_*.safetensors and writes outputs/<case>.safetensors, or <case>.out.f32
    print(oracle.golden.verify("vectors", "outputs", diagnose=True))   # `check` of each case

A folder contains

    case_<id>.safetensors      inputs.* bit for bit in the storage dtype; for the output, each gradient and log-sum-exp
                               `expected.*` in float64 and as float32 `.hi` + `.lo`; `budget.*`, `weights.*`
                               and `divisor.*` in float32; spec and recipe as JSON in the metadata of the header
    index.txt                  the limits as space-separated text: a line
                                   refdiff-golden 4 <number of cases> <CRC-32 of all that follows this line>
                               with at least one case; then for each case
                                   case <id> <file> <bytes> <CRC-32> <number of judged tensors>
                               and for each judged tensor, in one line,
                                   <name> <rows|numbers> <n> <width> <hi> <lo> <budget> <u> <row> <bulk>
                                   <element> <slope> <factor> <weights> <divisor> <half> <certain>
                               and for each input
                                   input <name> <dtype> <begin> <number of axes> <size of each axis>
                               hi, lo, budget, weights, divisor, begin: byte offsets of these arrays in the file;
                               all arrays are little-endian and in row-major order; a CRC-32 is zlib's, in 8
                               hexadecimal digits

The error of y is (y − hi) − lo, which float32 can compute. A tensor of kind "rows" has n rows of `width` numbers. With
E the budget of a row and e its errors, it passes if all of these hold; rows with infinite E are skipped:

    NaN and ±∞ are where hi has them (where lo is NaN, finite or not); the sums below are over the finite numbers
    rms(e) ≤ row · E
    |eᵢ| ≤ element · (6 E + 2 u |hiᵢ|)
    √mean (rms(e) / E)² ≤ bulk + (row − bulk) / √n, over the n rows that are not skipped
    |Σ e y| / Σ y² ≤ slope         over all rows with E ≤ rms(y)
    |Σ w f| ≤ factor               over all rows, w their weights, f = Σ e (hi + half e) / d² / Σ (hi / d)² for a row
                                   with the divisors d, `width` of them; half is ½ after a norm, else 0

A tensor of kind "numbers" has n numbers and passes if |e| ≤ budget. If `certain` is 0, a tensor that does not fail is
inconclusive: rounding errors may hide any mistake. `tests/golden_readers` has readers in C++ and Rust.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.files import check_name, new_folder, open_file, read_bytes, read_text, replace_atomically
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
RAW = ".f32"
"""The suffix of raw outputs: `<case>.<tensor>.f32` has one tensor, float32, little-endian, in row-major order."""
ARRAYS = {
    "hi": "expected.{}.hi", "lo": "expected.{}.lo", "budget": "budget.{}",
    "weights": "weights.{}", "divisor": "divisor.{}",
}  # fmt: skip
"""The columns of the index with the byte offset of an array, and the array's name."""
COLUMNS = (
    "hi", "lo", "budget", "u", "row", "bulk", "element", "slope", "factor", "weights", "divisor", "half",
    "certain",
)  # fmt: skip
"""The columns of a tensor's line in the index after its name, kind, n and width."""


def export(
    path: str | os.PathLike[str], cases: Iterable[Case], *, recipe: Recipe | str | None = None, gradients: bool = True
) -> None:
    """Write cases as test vectors for any language; the same cases give the same bytes of inputs.

    Args:
        path: the folder, created if it does not exist; files of an earlier export are replaced or removed, others kept.
        cases: from `oracle.cases` or `oracle.strategies`.
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
    earlier = _earlier_files(folder)
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
    for name in earlier - {_case_file(name) for name, _ in named}:
        (folder / name).unlink(missing_ok=True)


def seal_index(text: str, cases: int) -> bytes:
    """Return an index: its first line, with the CRC-32 of the other lines, and these lines."""
    return f"{FORMAT} {cases} {zlib.crc32(text.encode()):08x}\n{text}".encode()


def _case_file(name: str) -> str:
    return f"case_{name}.safetensors"


def _earlier_files(folder: Path) -> set[str]:
    """Return the files beside the index of an earlier export, also those that only the last release wrote."""
    try:
        names = [entry.name for entry in _read_index(folder)]
    except CheckpointError:
        return set()
    return {"manifest.json", *map(_case_file, names), *(f"case_{name}.npz" for name in names)}


def _build_case(name: str, case: Case, recipe: Recipe, gradients: bool) -> tuple[bytes, str]:
    """Return the bytes of a case's file and its lines of the index."""
    found = budget(case.spec, case.inputs, recipe, dout=case.dout if gradients else None)
    inputs = {**case.inputs, **({"dout": case.dout} if gradients else {})}
    arrays: dict[str, Numpy] = {f"inputs.{of}": np.asarray(x) for of, x in inputs.items()}
    limits = {tensor: _add_judged_tensor(tensor, found, arrays) for tensor in found.names}
    metadata = {"spec": json.dumps(case.spec.to_dict()), "recipe": json.dumps(recipe.to_dict())}
    data = b"".join(safetensors_bytes(arrays, {"format": FORMAT, **metadata}))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    begin = {of: start + header[of]["data_offsets"][0] for of in arrays}
    lines = [f"case {name} {_case_file(name)} {len(data)} {zlib.crc32(data):08x} {len(limits)}"]
    for tensor, (kind, width, columns) in limits.items():
        columns |= {column: begin.get(key.format(tensor), 0) for column, key in ARRAYS.items()}
        numbers = " ".join(f"{columns[column]:.17g}" for column in COLUMNS)
        lines.append(f"{tensor} {kind} {arrays[f'budget.{tensor}'].size} {width} {numbers}")
    for of, x in inputs.items():
        sizes = " ".join(map(str, (x.ndim, *x.shape)))
        lines.append(f"input {of} {x.dtype.name} {begin[f'inputs.{of}']} {sizes}")
    return data, "".join(f"{line}\n" for line in lines)


def _add_judged_tensor(name: str, found: Budget, arrays: dict[str, Numpy]) -> tuple[str, int, dict[str, float]]:
    """Add the arrays of one judged tensor to `arrays`; return its kind, its width and its limits."""
    tensor, padded = found.tensors.get(name), found.padded(name)
    limits = {**dict.fromkeys(COLUMNS, 0.0), "u": found.recipe.u, "row": 1.0}
    if tensor is None:
        expected, rows = found.absolute(name)
        rows = np.broadcast_to(rows, expected.shape)
        limits["certain"] = found.judge({name: expected}).status == PASS
    else:
        expected, rows = tensor.expected, np.where(tensor.doubtful, np.inf, tensor.rows)
        padded = None if padded is None else padded[..., 0]
        weights, divisor = np.zeros(rows.shape), None
        if tensor.factor is not None:
            weights, divisor = tensor.factor.weights, tensor.factor.divisor
        arrays[f"weights.{name}"] = _to_float32(weights)
        arrays[f"divisor.{name}"] = _to_float32(
            np.broadcast_to(1.0 if divisor is None else divisor, expected.shape[-1:])
        )
        limits |= {
            "u": tensor.u,
            "row": LIMITS.row,
            "bulk": LIMITS.bulk,
            "element": LIMITS.element,
            "slope": slope_limit(tensor),
            "factor": factor_limit(tensor),
            "half": 0.0 if divisor is None else 1 / 2,
            "certain": uncertain_share(tensor) <= LIMITS.share,
        }
    arrays[f"expected.{name}"] = np.asarray(expected, dtype=np.float64)
    arrays[f"expected.{name}.hi"], arrays[f"expected.{name}.lo"] = split_float64(expected, found.recipe.storage)
    arrays[f"budget.{name}"] = _to_float32(rows if padded is None else np.where(padded, np.inf, rows))
    return ("numbers", 1, limits) if tensor is None else ("rows", expected.shape[-1], limits)


def split_float64(x: Numpy, storage: str) -> tuple[Numpy, Numpy]:
    """Split float64 numbers into sums of two float32 numbers, `hi` + `lo`.

    hi is infinite where the number overflows the storage type. lo is NaN where the number is so near to the largest of
    the type that correct kernels may overflow or not.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        stored = round_to(np.asarray(x, dtype=np.float64), storage)
        hi = np.where(np.isfinite(stored), x, stored).astype(np.float32)
        lo = np.where(np.isfinite(hi), x - hi.astype(np.float64), 0.0).astype(np.float32)
        top = FORMATS[storage].top * (1 - 2 * FORMATS[storage].u)
        edge = np.isfinite(stored) ^ (np.abs(x) < top)
    return hi, np.where(edge & ~np.isnan(x), np.float32(math.nan), lo).astype(np.float32)


def _to_float32(x: Numpy) -> Numpy:
    with np.errstate(over="ignore"):
        return np.asarray(x, dtype=np.float32)


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
            lines.append(f"missing: no out in .safetensors, .npz or .out.f32 of {', '.join(self.missing)}")
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
    """Judge the outputs that a program computed from test vectors, as `check` does.

    Args:
        path: a folder that `export` wrote.
        outputs_dir: for each case `<id>.safetensors` or `<id>.npz` with `out` and optionally `dq`, `lse1`, …; or raw
            float32 files `<id>.out.f32`.
        diagnose: name the mistake of the first failing case.

    Raises:
        CheckpointError: there is no index, or it was changed; there is no folder of outputs; or an output cannot be
            read, has a wrong shape or an unknown name, or is in two files.
    """
    folder, outputs = Path(path), Path(outputs_dir)
    if not outputs.is_dir():
        raise CheckpointError(f"{outputs}: no folder of outputs")
    cases, missing, changed, unjudged = {}, [], [], {}
    diagnosis: dict[str, Ranking] = {}
    layers = set()
    for entry in _read_index(folder):
        name, file = entry.name, _case_file(entry.name)
        try:
            data = read_bytes(folder / file, max_bytes=entry.size, folder=folder)
        except CheckpointError as error:
            changed.append(str(error).removeprefix(f"{folder}{os.sep}"))
            continue
        if len(data) != entry.size or f"{zlib.crc32(data):08x}" != entry.crc:
            changed.append(f"{file}: its bytes have been changed: CRC-32 is not the index's")
            continue
        with _refusing(f"{folder / file}: not what this version writes", "export the files again"):
            arrays, metadata = read_arrays(folder / file, folder=folder)
            spec = Spec(**json.loads(metadata["spec"]))
            recipe = Recipe(**json.loads(metadata["recipe"]))
            shapes = {tensor: arrays[f"expected.{tensor}"].shape for tensor in entry.tensors}
        layers.add(spec.layer)
        given = _read_outputs(outputs, name, shapes)
        if "out" not in given:
            missing.append(name)
            continue
        inputs = {of.removeprefix("inputs."): x for of, x in arrays.items() if of.startswith("inputs.")}
        dout = inputs.pop("dout", None)
        dout = dout if any(tensor.startswith("d") for tensor in given) else None
        with _refusing(name, "give what the case asks for"):
            cases[name] = check(given, spec, inputs, recipe=recipe, dout=dout)
            if diagnose and not diagnosis and cases[name].status == FAIL:
                diagnosis[name] = find_mistake(given, spec, inputs, recipe=recipe, dout=dout)
        if absent := tuple(tensor for tensor in shapes if tensor not in given):
            unjudged[name] = absent
    return Report(cases, tuple(missing), tuple(changed), unjudged, diagnosis, tuple(sorted(layers)))


class _Entry(NamedTuple):
    """A case in the index: its id, the bytes and the CRC-32 of its file, and its judged tensors."""

    name: str
    size: int
    crc: str
    tensors: list[str]


def _read_index(folder: Path) -> list[_Entry]:
    """Read the cases of an index.

    Raises:
        CheckpointError: there is none, it is of another version, or it was changed.
    """
    path = folder / INDEX
    first, _, rest = read_text(path, max_bytes=LARGEST_INDEX, folder=folder).partition("\n")
    if not first.startswith(f"{FORMAT} "):
        raise CheckpointError(f"{path}: got {show_name(first[:30])}, expected {FORMAT!r}; export the files again")
    with _refusing(f"{path}: its text has been changed", "export the files again"):
        entries: list[_Entry] = []
        for line in rest.splitlines():
            kind, *words = line.split()
            if kind == "case":
                name, file, size, crc, _ = words
                if file != _case_file(name):
                    raise ValueError(f"the file of case {name} is {file}")
                check_name(folder, file)
                entries.append(_Entry(name, int(size), crc, []))
            elif kind != "input":
                entries[-1].tensors.append(kind)
        if not entries or seal_index(rest, len(entries)) != f"{first}\n{rest}".encode():
            raise ValueError("its CRC-32 or number of cases is not that of its first line")
        return entries


@contextlib.contextmanager
def _refusing(start: str, fix: str) -> Iterator[None]:
    """Turn exceptions into a `CheckpointError`: a CRC-32 does not rule out that somebody wrote other things."""
    try:
        yield
    except CheckpointError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{start}: {error or type(error).__name__}; {fix}") from error


def _read_outputs(folder: Path, name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Numpy]:
    """Read the outputs of one case, in the order of `shapes`."""
    whole = [folder / f"{name}.safetensors", folder / f"{name}.npz"]
    files = [(file, read_arrays(file)[0]) for file in whole if file.is_file()]
    for tensor, shape in shapes.items():
        if (file := folder / f"{name}.{tensor}{RAW}").is_file():
            files.append((file, {tensor: _read_raw(file, tensor, shape)}))
    found: dict[str, Numpy] = {}
    for file, arrays in files:
        for tensor, x in arrays.items():
            if tensor not in shapes:
                raise CheckpointError(f"{file}: {tensor!r} is no judged tensor: there are {', '.join(shapes)}")
            if tensor in found:
                raise CheckpointError(f"{file}: another file of {name} has {tensor} too; leave one of them")
            if x.shape != shapes[tensor]:
                raise CheckpointError(f"{file}: {tensor}: got shape {x.shape}, expected {shapes[tensor]}")
            found[tensor] = x
    return {tensor: found[tensor] for tensor in shapes if tensor in found}


def _read_raw(path: Path, tensor: str, shape: tuple[int, ...]) -> Numpy:
    with open_file(path) as file:
        size, numbers = os.fstat(file.fileno()).st_size, math.prod(shape)
        if size != 4 * numbers:
            raise CheckpointError(
                f"{path}: {size} bytes, but {tensor} has the shape {shape}, in float32 {4 * numbers} bytes"
            )
        data = file.read(size)
    return np.frombuffer(data, "<f4").reshape(shape)
