"""`export`: test vectors as files, in the form of refdiff's own index or of another project."""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from refdiff.files import new_folder, replace_atomically
from refdiff.oracle.cases.fixed import Case
from refdiff.oracle.golden.formats import flashinfer_trace_files, gguf_files, serves
from refdiff.oracle.golden.vector import Vector
from refdiff.oracle.inputs.arrays import safetensors_bytes
from refdiff.oracle.rounding.recipe import Recipe

FORMAT = "refdiff-golden 5"
INDEX = "index.txt"
STANDALONE = Path(__file__).with_name("standalone.py")
TARGETS = ("vectors", "pytest", "llama.cpp", "flashinfer-trace")
"""What `export` writes: refdiff's own files, these with a test that needs NumPy and pytest alone, or another form."""
OFFSETS = {"hi": "expected.{}.hi", "lo": "expected.{}.lo", "budget": "budget.{}"}
"""The columns of the index with the byte offset of an array, and the array's name."""
COLUMNS = ("hi", "lo", "budget", "row", "bulk", "slope", "certain")
"""The columns of a tensor's line in the index after its name, kind, n and width."""


def export(
    path: str | os.PathLike[str],
    cases: Iterable[Case],
    *,
    recipe: Recipe | str | None = None,
    gradients: bool = True,
    target: str = "vectors",
) -> tuple[str, ...]:
    """Write cases as test vectors for any language; the same cases give the same bytes of inputs.

    The guide `refdiff/oracle/guides/vectors.md` describes the files of each target.

    Args:
        path: the folder, created if it does not exist. Of "vectors" and "pytest" the cases of an earlier export are
            replaced or removed; the others need an empty one.
        cases: from `oracle.cases`.
        recipe: where the kernels round; None is the usual recipe of each case's dtype.
        gradients: also write the expected gradients for the gradient `dout` of the output.
        target: "vectors", "pytest", "llama.cpp" or "flashinfer-trace", which has no gradients.

    Returns:
        The names of the cases that are left out because the form of the target has no place for them.

    Raises:
        OSError: the disk is full or not writable; an earlier export stays as it was.
        ValueError: there are no cases, or two have the same name; the target is unknown, its folder is not empty, or
            it has no form for the spec or for any of the cases.
    """
    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}, expected one of {', '.join(TARGETS)}")
    named = [(re.sub(r"[^A-Za-z0-9_.-]", "_", case.name).strip(".") or "case", case) for case in cases]
    if not named:
        raise ValueError("cases: got none, expected at least one; take them from oracle.cases")
    if twice := sorted(name for name, count in Counter(name for name, _ in named).items() if count > 1):
        raise ValueError(f"two cases have one name: {twice}")
    folder, own = Path(path), target in ("vectors", "pytest")
    if not own and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: got a folder with files, expected a new or empty one for {target}")
    served = {name: case for name, case in named if own or serves(target, case)}
    if not served:
        raise ValueError(f"cases: got none that {target} has a form for, expected dense ones that are not empty")
    earlier = set(folder.glob(case_file("*"))) if own and (folder / INDEX).is_file() else set()
    gradients = gradients and target != "flashinfer-trace"
    vectors = (Vector.of(name, case, Recipe.of(recipe or case.dtype), gradients) for name, case in served.items())
    with new_folder(folder), contextlib.ExitStack() as written:  # files are replaced at the end
        for name, data in WRITERS[target](vectors):
            written.enter_context(new_folder((folder / name).parent))
            file = written.enter_context(replace_atomically(folder / name))
            file.write(data)
            file.flush()
            earlier.discard(folder / name)
    for unused in earlier:
        unused.unlink()
    return tuple(name for name, _ in named if name not in served)


def case_file(name: str) -> str:
    """Return the name of a case's file."""
    return f"case_{name}.safetensors"


def seal_index(text: str, cases: int) -> bytes:
    """Return an index: its first line, with the CRC-32 of the other lines, and these lines."""
    return f"{FORMAT} {cases} {zlib.crc32(text.encode()):08x}\n{text}".encode()


def _vector_files(vectors: Iterable[Vector]) -> Iterator[tuple[str, bytes]]:
    lines = []
    for vector in vectors:
        data, text = _encode(vector)
        lines.append(text)
        yield case_file(vector.name), data
    yield INDEX, seal_index("".join(lines), len(lines))


def _pytest_files(vectors: Iterable[Vector]) -> Iterator[tuple[str, bytes]]:
    yield from _vector_files(vectors)
    yield "test_vectors.py", STANDALONE.read_bytes()


def _encode(vector: Vector) -> tuple[bytes, str]:
    """Return the bytes of a case's file and its lines of the index."""
    arrays = vector.arrays
    data = b"".join(safetensors_bytes(arrays, {"format": FORMAT, **vector.metadata}))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    begin = {of: start + header[of]["data_offsets"][0] for of in arrays}
    name = vector.name
    lines = [f"case {name} {case_file(name)} {len(data)} {zlib.crc32(data):08x} {len(vector.limits)}"]
    for tensor, limits in vector.limits.items():
        columns = limits | {column: begin.get(key.format(tensor), 0) for column, key in OFFSETS.items()}
        kind, width = ("rows", arrays[f"expected.{tensor}"].shape[-1]) if tensor in vector.rows else ("numbers", 1)
        numbers = " ".join(f"{columns[column]:.17g}" for column in COLUMNS)
        lines.append(f"{tensor} {kind} {arrays[f'budget.{tensor}'].size} {width} {numbers}")
    for of, x in vector.inputs.items():
        sizes = " ".join(map(str, (x.ndim, *x.shape)))
        lines.append(f"input {of} {x.dtype.name} {begin[f'inputs.{of}']} {sizes}")
    return data, "".join(f"{line}\n" for line in lines)


WRITERS: dict[str, Callable[[Iterable[Vector]], Iterator[tuple[str, bytes]]]] = {
    "vectors": _vector_files,
    "pytest": _pytest_files,
    "llama.cpp": gguf_files,
    "flashinfer-trace": flashinfer_trace_files,
}
