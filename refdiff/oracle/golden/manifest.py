"""The manifest and the index of a folder of test vectors: how they are written, and whether they were changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from refdiff.errors import CheckpointError
from refdiff.files import check_name, read_bytes
from refdiff.messages import json_problem

FORMAT = "refdiff-golden 3"
LARGEST_FOLDER = 20_000_000
"""Bytes of a folder of test vectors: what a repository takes without a thought."""
MANIFEST, INDEX = "manifest.json", "index.txt"
COLUMNS = (
    "hi", "lo", "budget", "bound", "u", "row", "bulk", "element", "slope", "factor", "weights", "divisor", "half",
    "certain",
)  # fmt: skip
"""What an index has of each tensor after its name, kind, n and width."""


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Write a manifest in the one way that there is, with the hash of the rest in it."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return _canonical({**rest, "sha256": sha256(_canonical(rest).encode())})


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a folder's manifest, and say what was changed: its own text (then it has no cases), or files that it lists.

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
    with well_formed(path):
        if manifest_text(manifest).encode() != text:  # nothing else that it says can be believed
            return {**manifest, "cases": []}, [f"{MANIFEST}: its text has been changed"]
        return manifest, _changes(folder, manifest)


@contextlib.contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """Turn what goes wrong where a manifest lacks something, or has it of another type, into a `CheckpointError`.

    A manifest's hash says that it was not damaged, not who wrote it.
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
    """Say which files of a manifest were changed, or what it lacks."""
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
    return changed or _disagreements(manifest, found)


def _disagreements(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> list[str]:
    """What a manifest lacks, or its index says otherwise, where no byte of what it lists has been changed."""
    if not manifest["cases"]:
        return [f"{MANIFEST}: it has no cases"]
    if unlisted := {INDEX, *(case["file"] for case in manifest["cases"])} - files.keys():
        return [f"{name}: {MANIFEST} has no SHA-256 of it" for name in sorted(unlisted)]
    if files[INDEX] != index_text(manifest["cases"], files).encode():
        return [f"{INDEX}: it says something else than {MANIFEST}"]
    return []


def index_text(cases: Sequence[Mapping[str, Any]], files: Mapping[str, bytes]) -> str:
    """Write the index of a manifest's cases, whose files have these bytes."""
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
