"""The kernel's process: calls a submitted function on arrays in shared memory, without refdiff or expected outputs.

`process.py` starts a copy of this file as a program, through `confine.py`. A request is a line of JSON: `call` runs the
kernel and keeps what it returns, `send` lists what was kept, `drop` overwrites and frees it. An answer is JSON after
its length in four bytes. That of `send` says where in memory each array lies, and the judge reads it there. The bytes
of an array that lies elsewhere, as on a GPU, come after the answer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import math
import mmap
import os
import re
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
REACHES_OUT = {"os.kill", "os.killpg", "socket.connect"}
CHANGES_A_FILE = {
    "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate",
}  # fmt: skip
ARRAYS = {"numpy": "ndarray", "torch": "Tensor", "cupy": "ndarray", "mlx.core": "array"}
"""The array class of each library; a subclass could compute its numbers after it was returned."""


class Fields(SimpleNamespace):
    """The fields of a spec, as attributes. It has a hash, as a `Spec` has: a static argument of `jax.jit` needs one."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(vars(self), sort_keys=True))


class UnusableError(Exception):
    """What the kernel returned is no output."""


def guard(hidden: tuple[str, ...], scratch: str, processes: bool) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that refuses refdiff, other processes and files outside `scratch`, and says what it refuses.

    The kernel can undo it, as anything in Python. `confine` then refuses the same where the system has Landlock.
    """
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    inside = (f"{os.path.realpath(scratch)}/", "/dev/")

    others = re.compile(r"/proc/\d")

    def path_of(x: Any) -> str:
        return os.path.realpath(os.fsdecode(x)) if isinstance(x, str | bytes | os.PathLike) else inside[0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "import" and (args[0] == "refdiff" or args[0].startswith("refdiff.")):
            raise ImportError("refdiff cannot be imported in the process of a kernel that is judged")
        if event == "open":
            path, flags = path_of(args[0]), args[2] if isinstance(args[2], int) else 0
            if path.startswith(hidden) or (others.match(path) and not path.startswith(f"/proc/{os.getpid()}/")):
                raise PermissionError(f"{path} cannot be read in the process of a kernel that is judged")
            if flags & writes and not path.startswith(inside):
                raise PermissionError(f"{path} cannot be written by a kernel that is judged: its files go to $TMPDIR")
        elif event in CHANGES_A_FILE:
            for path in map(path_of, args[:2]):
                if not f"{path}/".startswith(inside):
                    raise PermissionError(f"{path} cannot be changed by a kernel that is judged ({event})")
        elif event in REACHES_OUT or (event in STARTS_A_PROCESS and not processes):
            more = "; --allow-processes lets it" if event in STARTS_A_PROCESS else ""
            raise PermissionError(f"a kernel that is judged may not call {event}{more}")

    return hook


def load(path: str, function: str) -> Callable[..., Any]:
    """Run the submitted file and return its function."""
    sys.path.insert(0, str(Path(path).parent))
    spec = importlib.util.spec_from_file_location("submission", path)
    if spec is None or spec.loader is None:
        raise UnusableError(f"{path} is no file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules["submission"] = module
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise UnusableError(f"the file has no function {function!r}; FILE.py:FUNCTION names another")
    return found  # type: ignore[no-any-return]


def adapted(kernel: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """Return a kernel of (spec, inputs) or (inputs), with dout=None or without, as one of all; whether it has dout."""
    try:
        signature = inspect.signature(kernel)
    except (TypeError, ValueError):  # it is compiled, and does not tell
        return (lambda spec, inputs, dout: kernel(spec, inputs)), False
    gradients = "dout" in signature.parameters
    more = {"dout": None} if gradients else {}
    try:
        signature.bind(None, **more)
        alone = next(iter(signature.parameters)) != "spec"
    except TypeError:
        alone = False

    def call(spec: Any, inputs: dict[str, Any], dout: Any) -> Any:
        return kernel(*((inputs,) if alone else (spec, inputs)), **({"dout": dout} if gradients else {}))

    return call, gradients


def dtype_of(name: str) -> np.dtype[Any]:
    """The type that has a name in NumPy or ml_dtypes."""
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def views(arena: mmap.mmap, arrays: list[list[Any]]) -> dict[str, Any]:
    """Arrays over the shared memory: (name, type, shape, offset) of each."""
    return {
        name: np.ndarray(tuple(shape), dtype_of(dtype), buffer=arena, offset=offset)
        for name, dtype, shape, offset in arrays
    }


def outputs(found: Any) -> dict[str, Any]:
    """What a kernel returned, by name: an array, a mapping, or an array and None as attention modules return it."""
    if isinstance(found, tuple) and len(found) > 1 and all(x is None for x in found[1:]):
        found = found[0]
    named = dict(found) if isinstance(found, Mapping) else {"out": found}
    for name, x in named.items():
        kinds = [getattr(sys.modules.get(home), kind, None) for home, kind in ARRAYS.items()]
        jax = type(x).__module__.startswith("jaxlib") and "jax" in sys.modules
        if type(x) not in kinds and not jax and not isinstance(x, np.floating | float):
            raise UnusableError(f"{name} is a {type(x).__module__}.{type(x).__qualname__}: give an array of a library")
        settle(x)
    return named


def settle(x: Any) -> None:
    """Wait until an array has its numbers."""
    home = type(x).__module__.partition(".")[0]
    if home == "mlx":
        sys.modules["mlx.core"].eval(x)
    elif home == "jaxlib":
        x.block_until_ready()
    elif home == "cupy":
        x.device.synchronize()
    elif home == "torch" and x.is_cuda:
        sys.modules["torch"].cuda.synchronize()


def bytes_of(x: Any) -> tuple[str, tuple[int, ...], bytes]:
    """The name of an array's type, its shape, and its numbers in row-major order."""
    home = type(x).__module__.partition(".")[0]
    if home == "torch":
        torch = sys.modules["torch"]
        flat = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return str(x.dtype).removeprefix("torch."), tuple(x.shape), flat.numpy().tobytes()
    if home == "mlx" and x.dtype == sys.modules["mlx.core"].bfloat16:
        return "bfloat16", tuple(x.shape), np.asarray(memoryview(x.view(sys.modules["mlx.core"].uint16))).tobytes()
    found = np.asarray(x.get() if home == "cupy" else x)
    return found.dtype.name, found.shape, found.tobytes()


def place_of(x: Any) -> tuple[int, list[int]] | None:
    """The address and the strides, in bytes, of an array that lies in this process's memory."""
    if type(x) is np.ndarray:
        return x.__array_interface__["data"][0], list(x.strides)
    if type(x).__module__.partition(".")[0] == "torch" and x.device.type == "cpu":
        return x.data_ptr(), [n * x.element_size() for n in x.stride()]
    return None


def spoil(x: Any) -> None:
    """Overwrite an output that was judged, where it can be written: its memory holds no answer for the next call."""
    with contextlib.suppress(Exception):
        if type(x).__module__.partition(".")[0] == "torch":
            x.detach().fill_(math.nan)
        else:
            x[...] = math.nan


def last_line(error: BaseException) -> str:
    """What was raised, and where: the last lines of a traceback."""
    where = traceback.extract_tb(error.__traceback__)
    at = f" (line {where[-1].lineno} of {Path(where[-1].filename).name})" if where else ""
    return "".join(traceback.format_exception_only(error)).strip()[-2000:] + at


class Answers:
    """The pipe to the judge."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def say(self, status: str, payload: bytes = b"", **more: Any) -> None:
        """Write an answer and what comes after it."""
        head = json.dumps({"status": status, **more}).encode()
        self._pipe.write(len(head).to_bytes(4, "little") + head + payload)
        self._pipe.flush()

    def fail(self, error: BaseException) -> None:
        """Say what the kernel raised, or why it cannot be used."""
        if isinstance(error, UnusableError):
            self.say("unusable", text=str(error))
        else:
            self.say("raised", text=last_line(error))


def serve(kernel: Callable[..., Any], requests: IO[bytes], answers: Answers, arena: mmap.mmap) -> None:
    """Answer requests until the judge closes the pipe."""
    seen: dict[str, dict[str, Any]] = {}
    kept: dict[int, dict[str, Any]] = {}
    for line in requests:
        request = json.loads(line)
        do, n = request["do"], request["n"]
        if do == "call":
            # the same arrays for inputs of the same shapes: a cache by pointer or by object finds other numbers there
            arrays = dict(seen.setdefault(json.dumps(request["arrays"]), {}) or views(arena, request["arrays"]))
            seen[json.dumps(request["arrays"])] = dict(arrays)
            dout = arrays.pop("dout", None)
            try:
                found = kernel(Fields(**request["spec"]), arrays, dout)
                if found is not NotImplemented:
                    kept[n] = outputs(found)
            except BaseException as error:
                answers.fail(error)
            else:
                answers.say("declined" if found is NotImplemented else "done")
        elif do == "send":
            try:
                sent = {name: (*bytes_of(x), place_of(x) if request["read"] else None) for name, x in kept[n].items()}
            except Exception as error:
                answers.fail(error)
                continue
            listed = [[name, dtype, list(shape), place] for name, (dtype, shape, _, place) in sent.items()]
            answers.say("arrays", b"".join(data for *_, data, place in sent.values() if not place), arrays=listed)
        else:
            for x in kept.pop(n, {}).values():
                spoil(x)


def main(config: dict[str, Any]) -> None:
    """Load the kernel, say what it takes, and serve."""
    arena = mmap.mmap(config["arena"], config["arena_bytes"])
    answers = Answers(os.fdopen(config["answers"], "wb"))
    sys.addaudithook(guard(tuple(f"{path}/" for path in config["hidden"]), config["scratch"], config["processes"]))
    try:
        kernel, gradients = adapted(load(config["kernel"], config["function"]))
    except BaseException as error:
        answers.fail(error)
        return
    answers.say("ready", gradients=gradients)
    with os.fdopen(config["requests"], "rb") as requests:
        serve(kernel, requests, answers, arena)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
