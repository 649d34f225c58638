"""The kernel's process: calls a submitted function on arrays in shared memory, without refdiff or expected outputs.

`process.py` starts a copy of this file as a program, through `confine.py`. A request is a line of JSON:

    call     run the kernel; with `first`, first overwrite and free what earlier calls returned
    again    send the arrays of the first call once more

A response is its length in four bytes, then JSON, then the bytes of the arrays that the kernel returned.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import math
import mmap
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import ml_dtypes
import numpy as np

ARRAYS = {"numpy": "ndarray", "torch": "Tensor", "cupy": "ndarray", "mlx.core": "array"}
"""The array class of each library. Subclasses are refused: one could compute its numbers after the call."""
FLOATS = ("float64", "float32", "float16", "bfloat16")
"""The types that an output may have."""
MAY_DO = "--allow-processes lets it start others, and `refdiff judge --help` says what a kernel may do"


class Fields(SimpleNamespace):
    """The fields of a spec as attributes; hashable like a `Spec`, since a static argument of `jax.jit` must be."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(vars(self), sort_keys=True))


class UnusableError(Exception):
    """The file has no kernel, or the kernel returned something that is no output."""


def refuse_refdiff(event: str, args: tuple[Any, ...]) -> None:
    """Refuse imports of refdiff, as an audit hook; code in this process can undo it, but not what `confine.py` did."""
    if event == "import" and (args[0] == "refdiff" or args[0].startswith("refdiff.")):
        raise ImportError("refdiff cannot be imported in the process of a kernel that is judged")


def run_file(path: str, name: str) -> Any:
    """Run a file as the module `name`, and return that."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnusableError("the file is neither Python nor a library: its name must end in .py, .so or .dylib")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load(config: Mapping[str, Any]) -> tuple[Callable[..., Any], bool]:
    """Run the submitted file; return its function of (spec, inputs, dout), and whether the kernel takes dout."""
    path, function, signature = config["kernel"], config["function"], run_file(config["signature"], "signature")
    if {".so", ".dylib"} & set(Path(path).suffixes):
        from_c = run_file(config["from_c"], "from_c").from_c
        try:
            found = from_c(path, function, gradients=config["gradients"])
        except ValueError:
            more = '--symbol names another; C++ needs extern "C"'
            raise UnusableError(f"the library has no function {function!r}; {more}") from None
        except OSError as error:
            raise UnusableError(f"the library cannot be loaded: {error}") from None
    else:
        sys.path.insert(0, str(Path(path).parent))
        found = getattr(run_file(path, "submission"), function, None)
    if not callable(found):
        raise UnusableError(f"the file has no function {function!r}; FILE.py:FUNCTION names another")
    try:
        return signature.adapt_kernel(found), signature.takes_dout(found)
    except TypeError as error:
        raise UnusableError(str(error)) from None


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the dtype of a name in NumPy or ml_dtypes."""
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def views(arena: mmap.mmap, arrays: list[list[Any]]) -> dict[str, Any]:
    """Return arrays over the shared memory, each listed as (name, dtype, shape, offset)."""
    return {
        name: np.ndarray(tuple(shape), dtype_of(dtype), buffer=arena, offset=offset)
        for name, dtype, shape, offset in arrays
    }


def outputs(found: Any) -> dict[str, Any]:
    """Return the outputs by name, from an array, a mapping, or a tuple (array, None) as attention modules return."""
    if isinstance(found, tuple) and len(found) > 1 and all(x is None for x in found[1:]):
        found = found[0]
    named = dict(found) if isinstance(found, Mapping) else {"out": found}
    for name, x in named.items():
        kinds = [getattr(sys.modules.get(home), kind, None) for home, kind in ARRAYS.items()]
        jax = type(x).__module__.startswith("jaxlib") and "jax" in sys.modules
        if type(x) not in kinds and not jax and not isinstance(x, np.floating | float):
            kind = f"{type(x).__module__}.{type(x).__qualname__}"
            raise UnusableError(f"{name} is a {kind}: return an array of NumPy, torch, jax, CuPy or MLX, no subclass")
    return named


def on_host(x: Any) -> np.ndarray[Any, Any]:
    """Return an array of any library as NumPy's, in the same memory if that is the host's; wait for its numbers."""
    home = type(x).__module__.partition(".")[0]
    x = x.detach().cpu() if home == "torch" else x.get() if home == "cupy" else x
    library: Any = sys.modules.get({"torch": "torch", "mlx": "mlx.core"}.get(home, ""))
    half = library is not None and x.dtype == library.bfloat16  # NumPy cannot read it
    found = np.asarray(x.view(library.int16) if half else x)
    return found.view(ml_dtypes.bfloat16) if half else found


def overwrite(x: Any) -> None:
    """Fill an output with NaN, if it is writable, so that no later call can return it again."""
    with contextlib.suppress(Exception):
        if type(x).__module__.partition(".")[0] == "torch":
            x.detach().fill_(math.nan)
        else:
            x[...] = math.nan


def describe(error: BaseException, kernel: str) -> str:
    """Return the message of an exception and the line that raised it: that of the file `kernel`, if one of it did."""
    if isinstance(error, UnusableError):
        return str(error)
    if isinstance(error, SyntaxError) and error.filename:
        at = f" (line {error.lineno} of {Path(error.filename).name})"
        return f"the kernel raised {type(error).__name__}: {error.msg}{at}"
    frames = traceback.extract_tb(error.__traceback__)
    where = [frame for frame in frames if frame.filename == kernel] or frames
    at = f" (line {where[-1].lineno} of {Path(where[-1].filename).name})" if where and kernel.endswith(".py") else ""
    refused = isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES, errno.EROFS)
    hint = f"; {MAY_DO}" if refused else ""
    return f"the kernel raised {''.join(traceback.format_exception_only(error)).strip()[-2000:]}{hint}{at}"


def respond(pipe: IO[bytes], status: str, payload: bytes = b"", **more: Any) -> None:
    """Write a response and the bytes that follow it."""
    head = json.dumps({"status": status, **more}).encode()
    pipe.write(len(head).to_bytes(4, "little") + head + payload)
    pipe.flush()


def respond_arrays(pipe: IO[bytes], arrays: Mapping[str, Any], arena: mmap.mmap) -> None:
    """Write the outputs of a call as a response."""
    listed, payload, shared = [], b"", np.frombuffer(arena, np.uint8)
    for name, x in arrays.items():
        found = on_host(x)
        if found.dtype.name not in FLOATS:
            raise UnusableError(f"the kernel returned {name} of type {found.dtype}: give {', '.join(FLOATS)}")
        if np.may_share_memory(found, shared):  # it would be overwritten with the inputs, and they with it
            raise UnusableError(f"{name} is in the memory of the inputs: return a new array")
        listed.append([name, found.dtype.name, found.shape])
        payload += found.tobytes()
    respond(pipe, "arrays", payload, arrays=listed)


def serve(
    kernel: Callable[..., Any], requests: IO[bytes], responses: IO[bytes], arena: mmap.mmap, path: str = ""
) -> None:
    """Serve requests for the kernel of the file `path` until the judge closes the pipe."""
    seen: dict[str, dict[str, Any]] = {}
    kept: list[dict[str, Any]] = []
    for line in requests:
        request = json.loads(line)
        try:
            if request["do"] == "again":
                respond_arrays(responses, kept[0], arena)
                continue
            while request["first"] and kept:
                for x in kept.pop().values():
                    overwrite(x)
            # inputs of the same shapes come as the same objects with other numbers: this fools a cache by id or pointer
            key = json.dumps(request["arrays"])
            if key not in seen:
                seen[key] = views(arena, request["arrays"])
            arrays = dict(seen[key])
            dout = arrays.pop("dout", None)
            found = kernel(Fields(**request["spec"]), arrays, dout)
            if found is NotImplemented:
                respond(responses, "declined")
                continue
            named = outputs(found)
            respond_arrays(responses, named, arena)
            kept.append(named)
        except BaseException as error:
            respond(responses, "failed", text=describe(error, path))


def main(config: dict[str, Any]) -> None:
    """Load the kernel, report whether it takes dout, and serve requests."""
    arena = mmap.mmap(config["arena"], 0)
    requests, responses = os.fdopen(config["requests"], "rb"), os.fdopen(config["responses"], "wb")
    sys.addaudithook(refuse_refdiff)
    try:
        kernel, gradients = load(config)
    except BaseException as error:
        respond(responses, "failed", text=describe(error, config["kernel"]))
        return
    respond(responses, "ready", gradients=gradients)
    serve(kernel, requests, responses, arena, config["kernel"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
