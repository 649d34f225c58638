"""The kernel's process: calls a submitted function on arrays in shared memory, without refdiff or expected outputs.

`process.py` starts a copy of this file as a program, through `confine.py`. A request is a line of JSON:

    call    run the kernel and keep the arrays that it returns
    send    list the arrays of a call, and send their bytes
    drop    overwrite and free the arrays of a call

A response is its length in four bytes, then JSON, then the bytes of arrays.
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

STARTS_A_PROCESS = {
    "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "subprocess.Popen",
}  # fmt: skip
REACHES_OUT = {"os.kill", "os.killpg", "socket.connect", "socket.sendto", "socket.sendmsg"}
ARRAYS = {"numpy": "ndarray", "torch": "Tensor", "cupy": "ndarray", "mlx.core": "array"}
"""The array class of each library. Subclasses are refused: one could compute its numbers after the call."""


class Fields(SimpleNamespace):
    """The fields of a spec as attributes; hashable like a `Spec`, since a static argument of `jax.jit` must be."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(vars(self), sort_keys=True))


class UnusableError(Exception):
    """The file has no kernel, or the kernel returned something that is no output."""


def guard(processes: bool) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that names what a kernel may not do, where Linux would only call it not permitted.

    Code in this process can undo the hook, but not what `confine.py` has done.
    """

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "import" and (args[0] == "refdiff" or args[0].startswith("refdiff.")):
            raise ImportError("refdiff cannot be imported in the process of a kernel that is judged")
        if event in REACHES_OUT or (event in STARTS_A_PROCESS and not processes):
            more = "; --allow-processes allows it" if event in STARTS_A_PROCESS else ""
            raise PermissionError(f"a kernel that is judged may not call {event}{more}")

    return hook


def run_file(path: str, name: str) -> Any:
    """Run a file as the module `name`, and return that."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnusableError("the file is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load(path: str, function: str, signature: Any) -> tuple[Callable[..., Any], bool]:
    """Run the submitted file; return its function of (spec, inputs, dout), and whether the kernel takes dout."""
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
    """Return arrays over the shared memory, each listed as (name, dtype, shape, offset, strides)."""
    return {
        name: np.ndarray(tuple(shape), dtype_of(dtype), buffer=arena, offset=offset, strides=tuple(strides))
        for name, dtype, shape, offset, strides in arrays
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
        synchronize(x)
    return named


def synchronize(x: Any) -> None:
    """Wait until the numbers of an array are computed."""
    home = type(x).__module__.partition(".")[0]
    if home == "mlx":
        sys.modules["mlx.core"].eval(x)
    elif home == "jaxlib":
        x.block_until_ready()
    elif home == "cupy":
        x.device.synchronize()
    elif home == "torch" and x.is_cuda:
        sys.modules["torch"].cuda.synchronize()


def array_bytes(x: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Return the dtype name of an array, its shape, and its bytes in row-major order."""
    home = type(x).__module__.partition(".")[0]
    if home == "torch":
        torch = sys.modules["torch"]
        flat = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return str(x.dtype).removeprefix("torch."), tuple(x.shape), flat.numpy().tobytes()
    if home == "mlx" and x.dtype == sys.modules["mlx.core"].bfloat16:
        return "bfloat16", tuple(x.shape), np.asarray(memoryview(x.view(sys.modules["mlx.core"].uint16))).tobytes()
    found = np.asarray(x.get() if home == "cupy" else x)
    return found.dtype.name, found.shape, found.tobytes()


def address(x: Any) -> int:
    """Return where an array of NumPy or torch begins in memory; 0 for any other array, which is never a view."""
    if type(x) is np.ndarray:
        return x.ctypes.data
    return x.data_ptr() if type(x).__module__.partition(".")[0] == "torch" else 0


def overwrite(x: Any) -> None:
    """Fill an output with NaN, if it is writable, so that no later call can return it again."""
    with contextlib.suppress(Exception):
        if type(x).__module__.partition(".")[0] == "torch":
            x.detach().fill_(math.nan)
        else:
            x[...] = math.nan


def last_line(error: BaseException, kernel: str) -> str:
    """Return the message of an exception and the line that raised it: that of the file `kernel`, if one of it did."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} (line {error.lineno} of {Path(error.filename).name})"
    frames = traceback.extract_tb(error.__traceback__)
    where = [frame for frame in frames if frame.filename == kernel] or frames
    at = f" (line {where[-1].lineno} of {Path(where[-1].filename).name})" if where else ""
    refused = isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES, errno.EROFS)
    hint = "; `refdiff judge --help` says what a kernel may do" if refused else ""
    return "".join(traceback.format_exception_only(error)).strip()[-2000:] + hint + at


class ResponsePipe:
    """The pipe that carries responses to the judge; `kernel` is the submitted file."""

    def __init__(self, pipe: IO[bytes], kernel: str) -> None:
        self._pipe, self._kernel = pipe, kernel

    def send(self, status: str, payload: bytes = b"", **more: Any) -> None:
        """Write a response and the bytes that follow it."""
        head = json.dumps({"status": status, **more}).encode()
        self._pipe.write(len(head).to_bytes(4, "little") + head + payload)
        self._pipe.flush()

    def fail(self, error: BaseException) -> None:
        """Report an exception of the kernel, or why the file or its output is unusable."""
        raised = f"the kernel raised {last_line(error, self._kernel)}"
        self.send("failed", text=str(error) if isinstance(error, UnusableError) else raised)


def serve(kernel: Callable[..., Any], requests: IO[bytes], responses: ResponsePipe, arena: mmap.mmap) -> None:
    """Serve requests until the judge closes the pipe."""
    shared = np.frombuffer(arena, np.uint8).ctypes.data
    seen: dict[str, dict[str, Any]] = {}
    kept: dict[int, dict[str, Any]] = {}
    for line in requests:
        request = json.loads(line)
        do, n = request["do"], request["n"]
        if do == "call":
            # inputs of the same shapes come as the same objects with other numbers: this fools a cache by id or pointer
            key = json.dumps(request["arrays"])
            if key not in seen:
                seen[key] = views(arena, request["arrays"])
            arrays = dict(seen[key])
            dout = arrays.pop("dout", None)
            try:
                found = kernel(Fields(**request["spec"]), arrays, dout)
                if found is not NotImplemented:
                    kept[n] = outputs(found)
            except BaseException as error:
                responses.fail(error)
            else:
                responses.send("declined" if found is NotImplemented else "done")
        elif do == "send":
            try:
                listed, payload = [], b""
                for name, x in kept[n].items():
                    dtype, shape, data = array_bytes(x)
                    if data and 0 <= address(x) - shared < len(arena):  # `drop` would overwrite an input
                        raise UnusableError(f"{name} is in the memory of the inputs: return a new array")
                    listed.append([name, dtype, shape])
                    payload += data
            except Exception as error:
                responses.fail(error)
            else:
                responses.send("arrays", payload, arrays=listed)
        else:
            for x in kept.pop(n, {}).values():
                overwrite(x)


def main(config: dict[str, Any]) -> None:
    """Load the kernel, report whether it takes dout, and serve requests."""
    arena = mmap.mmap(config["arena"], 0)
    responses = ResponsePipe(os.fdopen(config["responses"], "wb"), config["kernel"])
    signature = run_file(config["signature"], "signature")
    sys.addaudithook(guard(config["processes"]))
    try:
        kernel, gradients = load(config["kernel"], config["function"], signature)
    except BaseException as error:
        responses.fail(error)
        return
    responses.send("ready", gradients=gradients)
    with os.fdopen(config["requests"], "rb") as requests:
        serve(kernel, requests, responses, arena)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
