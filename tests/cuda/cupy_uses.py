"""What the code asks of CuPy, read from its source; and whether a CuPy that is installed has it.

Run as a program, in an environment with a CuPy: uses as JSON in, problems as JSON out. No device is needed.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Use:
    """A dotted name; for a call how many arguments have no name, None where `*` hides it, and the names of the rest."""

    path: str
    where: str
    called: bool = False
    positional: int | None = 0
    keywords: tuple[str, ...] = ()


OF_OBJECTS = (
    Use("cupy.RawModule.get_function", "device.py", True, 2),
    Use("cupy.RawKernel.max_dynamic_shared_size_bytes", "device.py"),
    Use("cupy.RawKernel.__call__", "device.py", True, 4, ("shared_mem",)),
    Use("cupy.cuda.Device.attributes", "device.py"),
    Use("cupy.cuda.Device.cublas_handle", "device.py"),
    Use("cupy.cuda.Device.__int__", "upload.py"),
    Use("cupy.cuda.Device.use", "upload.py", True, 1),
    Use("cupy.cuda.Event.synchronize", "upload.py", True, 1),
    Use("cupy.cuda.Event.record", "upload.py", True, 2),
    Use("cupy.cuda.PinnedMemoryPointer.ptr", "upload.py"),
    Use("cupy.cuda.Stream.record", "graph.py", True, 1),
    Use("cupy.cuda.Stream.wait_event", "graph.py", True, 2),
    Use("cupy.cuda.Stream.synchronize", "graph.py", True, 1),
    Use("cupy.cuda.Stream.begin_capture", "graph.py", True, 1),
    Use("cupy.cuda.Stream.end_capture", "graph.py", True, 1),
    Use("cupy.cuda.Stream.__enter__", "graph.py"),
    Use("cupy.cuda.Graph.launch", "graph.py", True, 1),
    Use("cupy.cuda.MemoryPool.malloc", "graph.py"),
    Use("cupy.ndarray.set", "device.py", True, 2),
    Use("cupy.ndarray.get", "arrays.py", True, 1),
    Use("cupy.ndarray.copy", "backends/cupy", True, 1, ("order",)),
)
"""What is asked of objects that CuPy made: the class is not in the text, so they are listed (self counts)."""

OF_THE_DEVICE = ("backends/cupy",)
"""Files in which an attribute that NumPy's arrays have is most likely one of CuPy's."""

OF_THE_HOST = ("ctypes",)
"""But for these, which are asked of NumPy's there."""

MODULES = ("np", "cupy", "xp", "self", "layers", "norm", "rope", "gemm", "attention", "sampling")
ARRAYS_HAVE = {name for name in dir(np.ndarray) if not name.startswith("_")} - set(OF_THE_HOST)


@functools.cache
def uses(package: Path) -> list[Use]:
    """List what all files ask of a namespace `xp`, and what they ask of a module `cupy`."""
    paths = sorted(package.rglob("*.py"))
    found = {use for path in paths for use in (*_of_file(path, package), *_of_arrays(path, package))}
    return sorted({*found, *OF_OBJECTS}, key=lambda use: (use.path, use.where, use.keywords))


def _of_arrays(path: Path, package: Path) -> Iterator[Use]:
    """What a file of the device asks of arrays, as far as the name tells."""
    where = path.relative_to(package).as_posix()
    if not where.startswith(OF_THE_DEVICE):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        of_module = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in MODULES
        if isinstance(node, ast.Attribute) and not of_module and node.attr in ARRAYS_HAVE:
            yield Use(f"cupy.ndarray.{node.attr}", where)


def _of_file(path: Path, package: Path) -> Iterator[Use]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    where = path.relative_to(package).as_posix()
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        dotted = _dotted(node)
        if dotted is None or id(node) in inner:
            continue
        call = calls.get(id(node))
        if call is None:
            yield Use(dotted, where)
            continue
        starred = any(isinstance(x, ast.Starred) for x in call.args)
        names = tuple(sorted(keyword.arg for keyword in call.keywords if keyword.arg))
        yield Use(dotted, where, True, None if starred else len(call.args), names)


def _dotted(node: ast.AST) -> str | None:
    """`cupy.a.b` as it stands; `xp.a`, `self.xp.a` and `namespace(…).a` as array_api_compat's CuPy."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
        if names[0] == "xp" and len(names) > 1:
            return ".".join(["array_api_compat.cupy", *names[1:]])
    if not names:
        return None
    if isinstance(node, ast.Name) and node.id == "cupy":
        return ".".join(["cupy", *names])
    if isinstance(node, ast.Name) and node.id == "xp":
        return ".".join(["array_api_compat.cupy", *names])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "namespace":
        return ".".join(["array_api_compat.cupy", *names])
    return None


def problem(use: Use) -> str | None:
    """Say what an installed CuPy lacks of a use."""
    root = "array_api_compat.cupy" if use.path.startswith("array_api_compat") else "cupy"
    thing: Any = importlib.import_module(root)
    for name in use.path[len(root) + 1 :].split("."):
        try:
            thing = getattr(thing, name)
        except AttributeError:
            return f"{use.path} is not there ({use.where})"
    if not use.called:
        return None
    parameters = _parameters(thing, use.path.split(".")[-1])
    if parameters is None:
        return f"{use.path} does not say what it takes ({use.where})"
    try:
        parameters.bind(*[None] * (use.positional or 0), **dict.fromkeys(use.keywords))
    except TypeError as error:
        if use.positional is not None or "missing" not in str(error):
            return f"{use.path}{parameters}: {error} ({use.where})"
    return None


def _parameters(thing: Any, name: str) -> inspect.Signature | None:
    """The signature of a function, or what the first lines of its docstring say, where it is written in Cython."""
    try:
        return inspect.signature(thing)
    except (TypeError, ValueError):
        pass
    name = {"abs": "absolute"}.get(name, name)  # which ufuncs are called after
    for line in (thing.__doc__ or "").splitlines():
        if match := re.match(rf"(?:\w+\.)?{name}\((.*)\)(?: ->.*)?$", line.strip()):
            return _read(match[1].replace("\\*", "*"))
    return None


def _read(text: str) -> inspect.Signature | None:
    """`intptr_t dst, *, x=None` → a signature, by Python itself: without types, and None for each default."""
    parameter = re.compile(r"(?:[^:=]*\s)?(\*{0,2}\w+|[*/])\s*(?::[^=]*)?(=.*)?")
    parts = [parameter.fullmatch(part.strip()) for part in text.split(",") if part.strip()]
    written = [part and part[1] + ("=None" if part[2] else "") for part in parts]
    if None in written:
        return None
    defined: dict[str, Any] = {}
    exec(f"def read({', '.join(map(str, written))}): ...", defined)
    return inspect.signature(defined["read"])


def main() -> None:
    # the CuPy in question comes first, before that of the environment, if it has one
    warnings.filterwarnings(
        "ignore", r"[\s-]*CuPy may not function correctly because multiple CuPy packages", UserWarning
    )
    import cupy

    given = [Use(**{**use, "keywords": tuple(use["keywords"])}) for use in json.load(sys.stdin)]
    problems = [said for use in given if (said := problem(use))]
    try:
        cupy.sum(cupy.ones(3))
        refused = ""
    except Exception as error:
        refused = f"{type(error).__name__}: {error}".splitlines()[0]
    json.dump({"version": cupy.__version__, "problems": problems, "refused": refused}, sys.stdout)


def as_json(found: list[Use]) -> str:
    return json.dumps([asdict(use) for use in found])


if __name__ == "__main__":
    main()
