"""Write a folder of test vectors: cases, manifest and index; read a manifest and check that no file was changed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import refdiff
from refdiff.errors import CheckpointError
from refdiff.files import check_name, free_space, new_folder, read_bytes, replace_atomically
from refdiff.messages import json_problem
from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.budget.statistics import LIMITS, CommonFactor, RowBudget, factor_limit, slope_limit, uncertain_share
from refdiff.oracle.cases.fixed import Case
from refdiff.oracle.inputs import gradient_names, options, shapes
from refdiff.oracle.inputs.arrays import safetensors_bytes
from refdiff.oracle.rounding import FORMATS, round_to
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.verdict.judge import judge_lse, judge_sums
from refdiff.oracle.verdict.verdict import PASS

FORMAT = "refdiff-golden 3"
LARGEST_FOLDER = 50_000_000
"""The most bytes of a folder of test vectors, so that it can be kept in a repository."""
MANIFEST, INDEX = "manifest.json", "index.txt"
COLUMNS = (
    "hi", "lo", "budget", "bound", "u", "row", "bulk", "element", "slope", "factor", "weights", "divisor", "half",
    "certain",
)  # fmt: skip
"""The columns of a tensor's line in the index after its name, kind, n and width."""
BUDGET_PARTS = ("budget", "bound", "weights", "divisor")
Numpy = np.ndarray[Any, Any]
FILE_FORMATS = ("safetensors", "npz")
LARGEST_CASE = 10_000_000
"""The most bytes of one case's file."""


def export(
    path: str | os.PathLike[str],
    cases: Iterable[Case],
    formats: Sequence[str] = ("safetensors",),
    *,
    recipe: Recipe | str | None = None,
    gradients: bool = True,
) -> None:
    """Write cases as test vectors for any language; the same cases give the same bytes of inputs.

    Args:
        path: the folder, created if it does not exist; files of an earlier export are replaced or removed, others kept.
        cases: from `oracle.cases` or `oracle.strategies`.
        formats: "safetensors", optionally also "npz".
        recipe: where the kernels round; None is the usual recipe of each case's dtype.
        gradients: also write the expected gradients for the gradient `dout` of the output.

    Raises:
        OSError: the disk is full or not writable; an earlier export stays as it was.
        ValueError: there are no cases, two have the same name, a format is unknown, or the files are too large.
    """
    cases = list(cases)
    if unknown := [name for name in formats if name not in FILE_FORMATS]:
        raise ValueError(f"formats has {unknown}, but may have {', '.join(FILE_FORMATS)}")
    if not cases or "safetensors" not in formats:
        raise ValueError("there must be at least one case, and safetensors among the formats")
    names = [_name(case) for case in cases]
    if len(set(names)) < len(names):
        raise ValueError(f"two cases have one name: {sorted(n for n in set(names) if names.count(n) > 1)}")
    folder = Path(path)
    _check_sizes(folder, dict(zip(names, cases, strict=True)), gradients, len(formats))
    made = [_build_case(name, case, recipe, gradients) for name, case in zip(names, cases, strict=True)]
    entries = [entry for entry, _, _ in made]
    files = {entry["file"]: data for entry, data, _ in made}
    if "npz" in formats:
        files |= {entry["file"].replace(".safetensors", ".npz"): _npz_bytes(arrays) for entry, _, arrays in made}
    files[INDEX] = index_text(entries, files).encode()
    _check_total(sum(map(len, files.values())))
    manifest = {
        "format": FORMAT,
        "licence": "Apache-2.0",
        "provenance": {"refdiff": refdiff.__version__, "numpy": np.__version__},
        "files": {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in files.items()},
        "cases": entries,
    }
    earlier = _earlier_cases(folder)
    with new_folder(folder), contextlib.ExitStack() as written:  # files are replaced at the end, the manifest last
        for name, data in {MANIFEST: manifest_text(manifest).encode(), **files}.items():
            file = written.enter_context(replace_atomically(folder / name))
            file.write(data)
            file.flush()
    for name in earlier - files.keys():
        (folder / name).unlink(missing_ok=True)


def _check_sizes(folder: Path, cases: Mapping[str, Case], gradients: bool, formats: int) -> None:
    """Check that the least that the files take fits the limits and the disk: computing them may take minutes."""
    total = 0
    for name, case in cases.items():
        inputs, dout = case.inputs, case.dout
        numbers = dout.size + sum(inputs[of[1:]].size for of in gradient_names(inputs) if gradients)
        least = sum(x.nbytes for x in inputs.values()) + dout.nbytes * gradients + 16 * numbers  # float64, hi and lo
        _check_case(name, least, "at least ")
        total += least * formats
    _check_total(total, "at least ")
    if total > (free := free_space(folder)):
        why = f"the cases take at least {total:,} bytes, and {free:,} are free; free some, or name another folder"
        raise OSError(errno.ENOSPC, why, str(folder))


def _check_case(name: str, size: int, about: str = "") -> None:
    if size > LARGEST_CASE:
        raise ValueError(
            f"{name} takes {about}{size:,} bytes, more than {LARGEST_CASE:,}: give a smaller "
            "case, with fewer or smaller heads, or gradients=False"
        )


def _check_total(size: int, about: str = "") -> None:
    if size > LARGEST_FOLDER:
        raise ValueError(
            f"the cases take {about}{size:,} bytes, more than {LARGEST_FOLDER:,}: give fewer or smaller ones"
        )


def _earlier_cases(folder: Path) -> set[str]:
    """Return the files of cases that an earlier export into the folder has in its manifest."""
    try:
        names = read_manifest(folder)[0]["files"]
        return {name for name in names if re.fullmatch(r"case_[A-Za-z0-9_.-]+\.(safetensors|npz)", name)}
    except (CheckpointError, LookupError, TypeError):
        return set()


def _name(case: Case) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", case.name)
    return name.strip(".") or "case"


def _build_case(
    name: str, case: Case, recipe: Recipe | str | None, gradients: bool
) -> tuple[dict[str, Any], bytes, dict[str, Numpy]]:
    """Return a case's entry in the manifest, the bytes of its file, and its arrays."""
    used = Recipe.of(case.dtype if recipe is None else recipe)
    found = budget(case.spec, case.inputs, used, dout=case.dout if gradients else None)
    arrays: dict[str, Numpy] = {f"inputs.{n}": x for n, x in case.inputs.items()}
    if gradients:
        arrays["inputs.dout"] = case.dout
    judged = [_add_judged_tensor(n, found, arrays) for n in found.names]
    metadata = {"spec": json.dumps(case.spec.to_dict()), "recipe": json.dumps(used.to_dict())}
    data = b"".join(safetensors_bytes(arrays, {"format": FORMAT, **metadata}))
    _check_case(name, len(data))
    offsets = _tensor_offsets(data)
    for tensor in judged:
        tensor |= {part: offsets[f"expected.{tensor['name']}.{part}"] for part in ("hi", "lo")}
        tensor |= {part: offsets.get(f"{part}.{tensor['name']}", 0) for part in BUDGET_PARTS}
    letters = {**shapes(case.spec, case.inputs), **options(case.inputs)}
    entry = {
        "id": name,
        "file": f"case_{name}.safetensors",
        "profile": case.profile,
        "seed": case.seed,
        "spec": case.spec.to_dict(),
        "recipe": used.to_dict(),
        "blind_to": sorted(deviation.name for deviation in case.blind_to),
        "judged": judged,
        "tensors": [_tensor_entry(n, x, letters, offsets[n]) for n, x in arrays.items()],
    }
    return entry, data, arrays


def _add_judged_tensor(name: str, found: Budget, arrays: dict[str, Numpy]) -> dict[str, Any]:
    """Add the arrays of one judged tensor to `arrays`; return its entry in the manifest, which has its limits."""
    if name in found.tensors:
        tensor = found.tensors[name]
        expected, rows = tensor.expected, np.where(tensor.doubtful, np.inf, tensor.rows)
        if (padded := found.padded(name)) is not None:
            rows = np.where(padded[..., 0], np.inf, rows)
        arrays[f"bound.{name}"] = _to_float32(tensor.bounds)
        factor = tensor.factor or CommonFactor(np.zeros(rows.shape), 0.0, None)
        arrays[f"weights.{name}"] = _to_float32(factor.weights)
        divisor = 1.0 if factor.divisor is None else factor.divisor
        arrays[f"divisor.{name}"] = _to_float32(np.broadcast_to(divisor, expected.shape[-1:]))
        limits = _row_limits(tensor)
    else:
        expected, rows = found.absolute(name)
        rows = np.broadcast_to(rows, expected.shape)
        judge = judge_lse if name.startswith("lse") else judge_sums
        certain = judge(name, expected, expected, _to_float32(rows)).status == PASS
        none = dict.fromkeys(("bulk", "element", "slope", "factor", "half"), 0.0)
        limits = {"kind": "numbers", "axes": "", "n": expected.size, "width": 1, "u": found.recipe.u, "row": 1.0,
                  **none, "certain": int(certain)}  # fmt: skip
    arrays[f"expected.{name}"] = np.asarray(expected, dtype=np.float64)
    arrays[f"expected.{name}.hi"], arrays[f"expected.{name}.lo"] = split_float64(expected, found.recipe.storage)
    arrays[f"budget.{name}"] = _to_float32(rows)
    return {"name": name, **limits}


def _row_limits(tensor: RowBudget) -> dict[str, Any]:
    return {
        "kind": "rows",
        "axes": tensor.axes,
        "n": tensor.rows.size,
        "width": tensor.expected.shape[-1],
        "u": tensor.u,
        "row": LIMITS.row,
        "bulk": LIMITS.bulk,
        "element": LIMITS.element,
        "slope": slope_limit(tensor),
        "factor": factor_limit(tensor),
        "half": 0.0 if tensor.factor is None or tensor.factor.divisor is None else 0.5,
        "certain": int(uncertain_share(tensor) <= LIMITS.share),
        "legal_slope": tensor.slope,
        "factor_spread": tensor.factor.spread if tensor.factor else None,
        "storage": tensor.storage,
        "relative_to": tensor.relative_to,
    }


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


def _tensor_offsets(data: bytes) -> dict[str, int]:
    """Return the byte offset of each tensor in a safetensors file."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return {name: start + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _npz_bytes(arrays: Mapping[str, Numpy]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **dict(arrays))  # type: ignore[arg-type]
    return file.getvalue()


def _tensor_entry(name: str, array: Numpy, letters: Mapping[str, str], begin: int) -> dict[str, Any]:
    role, _, rest = name.partition(".")
    judged = rest.removesuffix(".hi").removesuffix(".lo")
    role = {"inputs": "input", **dict.fromkeys(BUDGET_PARTS, "budget")}.get(role, role)
    if role == "expected" and judged.startswith("d"):
        role = "grad"
    axes = letters.get(rest if role == "input" else judged.removeprefix("d"), "")
    shape = list(array.shape)
    return {"name": name, "role": role, "dtype": array.dtype.name, "shape": shape, "axes": axes, "begin": begin}


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as canonical JSON, with the SHA-256 of everything else in it."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return _canonical({**rest, "sha256": sha256(_canonical(rest).encode())})


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a folder's manifest; also return a message for each file that was changed since it was written.

    If the manifest itself was changed, it is returned without cases.

    Raises:
        CheckpointError: there is no manifest, or it cannot be read as one.
    """
    path = folder / MANIFEST
    text = read_bytes(path, max_bytes=LARGEST_FOLDER, folder=folder)
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a manifest of golden files: {json_problem(error)}; export them again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: the format is not {FORMAT!r}, the one that this version reads")
    with reporting_malformed(path):
        if manifest_text(manifest).encode() != text:  # so its hashes are worth nothing
            return {**manifest, "cases": []}, [f"{MANIFEST}: its text has been changed"]
        return manifest, _changes(folder, manifest)


@contextlib.contextmanager
def reporting_malformed(path: Path) -> Iterator[None]:
    """Turn the exceptions of reading a manifest with missing or mistyped entries into a `CheckpointError`.

    Its hash does not rule this out: anybody can write a malformed manifest with the right hash.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not what this version writes: {type(error).__name__}: {error}; export the files again"
        ) from error


def _changes(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return a message for each file of a manifest that was changed, or for each inconsistency of the manifest."""
    found, changed = {}, []
    for name, entry in manifest["files"].items():
        check_name(folder, name)
        try:
            found[name] = read_bytes(folder / name, max_bytes=LARGEST_FOLDER, folder=folder)
        except CheckpointError as error:
            changed.append(str(error).removeprefix(f"{folder}{os.sep}"))
            continue
        if sha256(found[name]) != entry["sha256"]:
            changed.append(f"{name}: its bytes have been changed: SHA-256 is not the manifest's")
    return changed or _inconsistencies(manifest, found)


def _inconsistencies(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> list[str]:
    """Return a message if a manifest has no cases, lacks a file's hash, or differs from its index."""
    if not manifest["cases"]:
        return [f"{MANIFEST}: it has no cases"]
    if unlisted := {INDEX, *(case["file"] for case in manifest["cases"])} - files.keys():
        return [f"{name}: {MANIFEST} has no SHA-256 of it" for name in sorted(unlisted)]
    if files[INDEX] != index_text(manifest["cases"], files).encode():
        return [f"{INDEX}: it does not agree with {MANIFEST}"]
    return []


def index_text(cases: Sequence[Mapping[str, Any]], files: Mapping[str, bytes]) -> str:
    """Return the text of the index of a manifest's cases; `files` has the bytes of each file."""
    lines = []
    for case in cases:
        data, judged = files[case["file"]], case["judged"]
        lines.append(f"case {case['id']} {case['file']} {len(data)} {zlib.crc32(data):08x} {len(judged)}")
        for t in judged:
            numbers = " ".join(f"{t[column]:.17g}" for column in COLUMNS)
            lines.append(f"{t['name']} {t['kind']} {t['n']} {t['width']} {numbers}")
        for t in case["tensors"]:
            if t["role"] == "input":
                shape = " ".join(map(str, (len(t["shape"]), *t["shape"])))
                lines.append(f"input {t['name'].removeprefix('inputs.')} {t['dtype']} {t['begin']} {shape}")
    text = "".join(f"{line}\n" for line in lines)
    return f"{FORMAT} {len(cases)} {zlib.crc32(text.encode()):08x}\n{text}"
