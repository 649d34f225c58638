"""`export`: test vectors as files, in the form of refdiff's own index or of another project."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from refdiff.files import new_folder, replace_atomically
from refdiff.oracle.cases.fixed import Case
from refdiff.oracle.golden.formats import flashinfer_trace_files, gguf_files, serves
from refdiff.oracle.golden.vector import Vector, make_vector
from refdiff.oracle.inputs.arrays import safetensors_bytes
from refdiff.oracle.rounding.recipe import Recipe

FORMAT = "refdiff-golden 6"
INDEX = "index.txt"
STANDALONE = Path(__file__).with_name("standalone.py")


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
        path: a new or empty folder.
        cases: from `oracle.cases`.
        recipe: where the kernels round; None is the usual recipe of each case's dtype.
        gradients: also write the expected gradients for the gradient `dout` of the output.
        target: "vectors", "pytest", "llama.cpp" or "flashinfer-trace", which has no gradients.

    Returns:
        The names of the cases that are left out because the form of the target has no place for them.

    Raises:
        OSError: the disk is full or not writable; nothing is left.
        ValueError: there are no cases, or two have the same name; the folder is not empty; or the target is unknown, or
            has no form for the spec or for any of the cases.
    """
    if target not in WRITERS:
        raise ValueError(f"target: got {target!r}, expected one of {', '.join(WRITERS)}")
    named = [(re.sub(r"[^A-Za-z0-9_.-]", "_", case.name).strip(".") or "case", case) for case in cases]
    if not named:
        raise ValueError("cases: got none, expected at least one; take them from oracle.cases")
    if twice := sorted(name for name, count in Counter(name for name, _ in named).items() if count > 1):
        raise ValueError(f"two cases have one name: {twice}")
    folder, own = Path(path), target in ("vectors", "pytest")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: got a folder with files, expected a new or empty one")
    served = {name: case for name, case in named if own or serves(target, case)}
    if not served:
        raise ValueError(f"cases: got none that {target} has a form for, expected dense ones that are not empty")
    gradients = gradients and target != "flashinfer-trace"
    vectors = (make_vector(name, case, Recipe.of(recipe or case.dtype), gradients) for name, case in served.items())
    with new_folder(folder), contextlib.ExitStack() as written:  # files appear at the end
        for name, data in WRITERS[target](vectors):
            written.enter_context(new_folder((folder / name).parent))
            written.enter_context(replace_atomically(folder / name)).write(data)
    return tuple(name for name, _ in named if name not in served)


def case_file(name: str) -> str:
    """Return the name of a case's file."""
    return f"case_{name}.safetensors"


def _vector_files(vectors: Iterable[Vector]) -> Iterator[tuple[str, bytes]]:
    index = f"{FORMAT}\n"
    for vector in vectors:
        data = b"".join(safetensors_bytes(vector.arrays, {"format": FORMAT, **vector.metadata}))
        index += _index_lines(vector, data)
        yield case_file(vector.name), data
    yield INDEX, index.encode()


def _pytest_files(vectors: Iterable[Vector]) -> Iterator[tuple[str, bytes]]:
    yield from _vector_files(vectors)
    yield "test_vectors.py", STANDALONE.read_bytes()


def _index_lines(vector: Vector, data: bytes) -> str:
    """Return the lines of the index of a case whose file has these bytes."""
    arrays, start = vector.arrays, 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    begin = {of: start + header[of]["data_offsets"][0] for of in arrays}
    lines = [f"case {vector.name} {case_file(vector.name)}"]
    for tensor, limits in vector.limits.items():
        expected, budget = f"expected.{tensor}", f"budget.{tensor}"
        width = arrays[expected].shape[-1] if arrays[expected].ndim > arrays[budget].ndim else 1
        numbers = " ".join(f"{x:.17g}" for x in limits)
        lines.append(f"{tensor} {arrays[budget].size} {width} {begin[expected]} {begin[budget]} {numbers}")
    for of, x in vector.inputs.items():
        sizes = " ".join(map(str, (x.ndim, *x.shape)))
        lines.append(f"input {of} {x.dtype.name} {begin[f'inputs.{of}']} {sizes}")
    return "".join(f"{line}\n" for line in lines)


WRITERS: dict[str, Callable[[Iterable[Vector]], Iterator[tuple[str, bytes]]]] = {
    "vectors": _vector_files,
    "pytest": _pytest_files,
    "llama.cpp": gguf_files,
    "flashinfer-trace": flashinfer_trace_files,
}
"""What `export` writes: refdiff's own files, these with a test that needs NumPy and pytest alone, or another form."""
