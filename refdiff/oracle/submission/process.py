"""The judge's side of the kernel's process: start it, send requests, enforce limits, end it and its descendants."""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import itertools
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

import refdiff
from refdiff.oracle.from_c import HEADER
from refdiff.oracle.inputs import signature
from refdiff.oracle.inputs.outputs import KernelError
from refdiff.oracle.submission import child, confine

Numpy = np.ndarray[Any, Any]

LONGEST_HEAD = 2**16
"""The most bytes of a response's JSON: a text, or some names, types and shapes."""
ALIGNED = 64
POISON = 0xFF
"""The value of every byte of the inputs after a call has returned: NaN in every floating-point type."""
FIXED = {"MALLOC_PERTURB_": "128", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""glibc fills new memory with the complement of this byte, 3.4e38 in float32; torch needs no semaphores in /dev/shm."""
VARIABLES = (
    "PATH", "LANG", "LC_*", "TZ", "LD_LIBRARY_PATH", "CC", "CXX", "*_NUM_THREADS", "OMP_*", "KMP_*", "CUDA_*",
    "NVIDIA_*", "HIP_*", "ROCR_*", "TRITON_*", "TORCH_*", "PYTORCH_*", "JAX_*", "XLA_*", "NUMBA_*", "MLX_*",
)  # fmt: skip
"""The environment variables that a kernel gets: no other, since they may have passwords."""
FOLDERS = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "NUMBA_CACHE_DIR")
"""The environment variables that name the only folder in which a kernel may write."""
MEASURED_EVERY = 1 / 20
"""Seconds between two measurements of the kernel's memory; more where one takes long."""
MOST_AXES = 32
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of Linux: orphaned descendants become children of the process that sets it."""


class ProcessError(KernelError):
    """The process cannot be used any more: it ended, took too long or wrote no valid response."""


class LoadError(ValueError):
    """The file has no kernel, or raises an exception when it is loaded."""


TOO_LARGE = "larger than any output of these inputs"
NO_RESPONSE = "the kernel's process has written something other than responses to the judge"


@dataclass(frozen=True)
class ProcessLimits:
    """Limits of the kernel's process.

    seconds: the time for loading the file, and for each call. memory: bytes of the process and all that it starts.
    processes: whether it may start other processes, such as compilers.
    """

    seconds: float = 60.0
    memory: int = 2**33
    processes: bool = False


class KernelProcess:
    """A process that runs a submitted file; `start` makes one. gradients: whether the kernel takes dout."""

    def __init__(
        self, process: subprocess.Popen[bytes], requests: IO[bytes], responses: int, arena: IO[bytes], log: IO[bytes],
        limits: ProcessLimits,
    ) -> None:  # fmt: skip
        self._process, self._requests, self._responses = process, requests, responses
        self._arena, self._log, self._limits = arena, log, limits
        self._deadline = time.monotonic() + limits.seconds
        self._next_measurement = 0.0
        self.gradients = False
        self.confinement: tuple[str, ...] = ()

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, path: Path, function: str, largest: int, limits: ProcessLimits, *, gradients: bool
    ) -> Iterator[KernelProcess]:
        """Start a process and load the file; leaving the context ends the process.

        Args:
            path: the file.
            function: the name of the kernel in it.
            largest: the most bytes of the inputs of one call.
            limits: time, memory and processes.
            gradients: whether the function of a shared library computes gradients.

        Raises:
            LoadError: the file does not load.
            ProcessError: the process ended or took too long when it loaded the file.
        """
        with contextlib.ExitStack() as files:
            scratch = files.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            arena, log = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            arena.truncate(largest + 2**14)
            child_in, judge_out = os.pipe()
            judge_in, child_out = os.pipe()
            requests = files.enter_context(os.fdopen(judge_out, "wb", buffering=0))
            files.callback(os.close, judge_in)
            config = _config(path, function, limits, scratch)
            config |= {"requests": child_in, "responses": child_out, "arena": arena.fileno(), "gradients": gradients}
            config["signature"] = shutil.copy(signature.__file__, scratch)
            config["from_c"] = shutil.copy(HEADER.with_name("from_c.py"), scratch)
            program = shutil.copy(child.__file__, scratch)
            earlier_children = children()
            files.enter_context(_own_limits())
            _adopt_orphans(True)
            process = subprocess.Popen(  # noqa: S603 - the interpreter itself
                [sys.executable, "-I", "-B", confine.__file__, json.dumps(config), program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=scratch,
                env=_environment(scratch),
                pass_fds=(child_in, child_out, arena.fileno()),
                start_new_session=True,
            )
            os.close(child_in)
            os.close(child_out)
            os.set_blocking(judge_in, False)
            try:
                kernel = cls(process, requests, judge_in, arena, log, limits)
                kernel._load(path)
                yield kernel
                requests.close()  # the process responds, and ends now
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)
            finally:
                _kill(process, earlier_children)

    def _load(self, path: Path) -> None:
        self.confinement = tuple(self._response("confined")["by"])
        try:
            self.gradients = self._response("ready")["gradients"] is True
        except ProcessError:
            raise
        except KernelError as error:
            raise LoadError(f"{path}: {error}") from None

    def call(
        self, spec: Mapping[str, Any], arrays: Mapping[str, Numpy], largest: int, *, first: bool
    ) -> dict[str, Numpy] | None:
        """Run the kernel on these arrays; return its outputs, of at most `largest` bytes, or None if it declines them.

        The arrays are in the same memory at each call. After the call they are checked for changes, then overwritten.
        first: whether what earlier calls returned is overwritten before.

        Raises:
            KernelError: the kernel raised, its process ended or took too long, it changed its inputs, or its outputs
                are no arrays or too large.
        """
        ends = [0, *itertools.accumulate(-(-x.nbytes // ALIGNED) * ALIGNED for x in arrays.values())]
        listed = [[name, x.dtype.name, x.shape, start] for (name, x), start in zip(arrays.items(), ends, strict=False)]
        data = b"".join(x.tobytes().ljust(-(-x.nbytes // ALIGNED) * ALIGNED, b"\0") for x in arrays.values())
        os.pwrite(self._arena.fileno(), data, 0)
        outputs = self._outputs(largest, do="call", first=first, arrays=listed, spec=spec)
        for name, start, end in zip(arrays, ends, ends[1:], strict=False):
            if os.pread(self._arena.fileno(), end - start, start) != data[start:end]:
                raise KernelError(f"the kernel has changed its input {name}")
        os.pwrite(self._arena.fileno(), bytes([POISON]) * ends[-1], 0)
        return outputs

    def again(self, largest: int) -> dict[str, Numpy] | None:
        """Return once more what the last call with `first` returned, as it is now."""
        return self._outputs(largest, do="again")

    def _outputs(self, largest: int, **request: Any) -> dict[str, Numpy] | None:
        self._deadline = time.monotonic() + self._limits.seconds
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
        except OSError:
            raise self._exit_error() from None
        response = self._response("arrays", "declined")
        found: dict[str, Numpy] = {}
        entries = response.get("arrays", [])
        for entry in entries if isinstance(entries, list) else [None]:
            match entry:
                case [str(name), str(dtype), list(shape)] if dtype in child.FLOATS and is_shape(shape):
                    largest -= (size := math.prod(shape) * child.dtype_of(dtype).itemsize)
                    if largest < 0:
                        raise ProcessError(f"the kernel returned {name[:40]} of {shape}: {TOO_LARGE}")
                    found[name] = np.frombuffer(self._read(size), child.dtype_of(dtype)).reshape(shape)
                case _:
                    raise ProcessError(NO_RESPONSE)
        return found if response["status"] == "arrays" else None

    def _response(self, *expected: str) -> dict[str, Any]:
        if (size := int.from_bytes(self._read(4), "little")) > LONGEST_HEAD:
            raise ProcessError(NO_RESPONSE)
        try:
            response = json.loads(self._read(size))
        except (ValueError, RecursionError):
            raise ProcessError(NO_RESPONSE) from None
        if isinstance(response, dict) and response.get("status") == "failed":
            raise KernelError(str(response.get("text")))
        if not isinstance(response, dict) or response.get("status") not in expected:
            raise ProcessError(NO_RESPONSE)
        return response

    def _read(self, size: int) -> bytearray:
        """Read exactly `size` bytes from the response pipe before the deadline."""
        data = bytearray()
        while len(data) < size:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise ProcessError(f"the kernel took more than {self._limits.seconds:g} s: --timeout allows more")
            self._measure()
            if not select.select([self._responses], [], [], min(left, MEASURED_EVERY))[0]:
                continue
            if not (piece := os.read(self._responses, min(size - len(data), 2**20))):
                raise self._exit_error()
            data += piece
        return data

    def _measure(self) -> None:
        """Raise an exception if the process and its descendants hold too much memory."""
        if (start := time.monotonic()) < self._next_measurement:
            return
        held = sum(map(_held_memory, _family(self._process.pid)))
        if held > self._limits.memory:
            raise ProcessError(f"the kernel held more than {self._limits.memory / 2**30:.3g} GiB: --memory allows more")
        took = time.monotonic() - start
        self._next_measurement = start + max(MEASURED_EVERY, 20 * took)

    def _exit_error(self) -> ProcessError:
        """Describe how a process that closed its pipe ended, with the last 2000 bytes that it printed."""
        try:
            status = self._process.wait(2)
        except subprocess.TimeoutExpired:
            return ProcessError("the kernel has closed the pipe to the judge")
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 2000))
        printed = self._log.read().decode(errors="replace").strip()
        return ProcessError(f"the kernel's process ended with {how}{': ' if printed else ''}{printed}")


def is_shape(shape: list[Any]) -> bool:
    """Whether a list is a shape that NumPy takes."""
    return len(shape) <= MOST_AXES and all(type(n) is int and 0 <= n < 2**40 for n in shape)


def _config(path: Path, function: str, limits: ProcessLimits, scratch: str) -> dict[str, Any]:
    """Return what `confine.py` and `child.py` are told."""
    entries = [entry for entry in sys.path if entry]
    packages = [*refdiff.__path__, *(str(Path(entry, "refdiff")) for entry in entries)]  # there may be installed ones
    return {
        "judge": os.getpid(),
        "kernel": str(path.resolve()),
        "function": function,
        "scratch": scratch,
        "hidden": sorted({os.path.realpath(package) for package in packages if Path(package).is_dir()}),
        "memory": limits.memory,
        "processes": limits.processes,
        "path": entries,
    }


def _environment(scratch: str) -> dict[str, str]:
    kept = {name: x for name, x in os.environ.items() if any(fnmatch.fnmatchcase(name, shown) for shown in VARIABLES)}
    return {**kept, **dict.fromkeys(FOLDERS, scratch), **FIXED}


def children(pid: int | str = "self") -> set[int]:
    """Return the ids of a process's children; none if the system has no /proc."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= set(map(int, path.read_text(encoding="ascii").split()))
    return found


def _family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for member in found:
        found += children(member)
    return found


def _held_memory(pid: int) -> int:
    """Return the bytes that a process holds, its part of what it shares included; 0 if the system does not say."""
    for file, names in (("smaps_rollup", ("Pss_Anon:", "Pss_Shmem:")), ("status", ("RssAnon:", "RssShmem:"))):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8").splitlines()
            if found := [int(line.split()[1]) for line in lines if line.startswith(names)]:
                return sum(found) * 1024
    return 0


@contextlib.contextmanager
def _own_limits() -> Iterator[None]:
    """Restore the limits of this process, and its processors, after a kernel that could reach them."""
    import resource

    kinds = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    limits = {kind: resource.getrlimit(kind) for kind in kinds}
    processors = os.sched_getaffinity(0) if sys.platform == "linux" else set()
    try:
        yield
    finally:
        for kind, limit in limits.items():
            with contextlib.suppress(OSError, ValueError):  # only root may raise a hard limit
                resource.setrlimit(kind, limit)
        if processors:
            os.sched_setaffinity(0, processors)


def _kill(process: subprocess.Popen[bytes], earlier_children: set[int]) -> None:
    """Kill a process, its session, and descendants that left it, which are now children of this process."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while orphans := children() - earlier_children:
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    _adopt_orphans(False)


def _adopt_orphans(on: bool) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, int(on), 0, 0, 0)
