"""The machine that is measured: its description without paths or host names, memory in use, and the CUDA device."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from refdiff import arrays
from refdiff.backends.numpy.thread_pool import cores
from refdiff.model.cache import UNKNOWN_MEMORY, physical_memory

SIXTEEN_BITS = ("float16", "bfloat16")
"""Types that matrices are kept in on a device; what is computed between them stays float32 here."""

PACKAGES = ("numpy", "transformers", "torch", "onnxruntime")


class UnavailableError(RuntimeError):
    """A side that cannot be measured here; the message says what to install."""


def peak_memory() -> int | None:
    """Return the most memory that this process has held, in bytes, or None where the system does not say."""
    high_water = _status_bytes("VmHWM")
    if high_water is not None:  # getrusage's maximum is inherited from the process that started this one
        return high_water
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def own_memory() -> int | None:
    """Return the bytes that this process holds now, without mapped files, or None where the system does not say."""
    return _status_bytes("RssAnon")


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor as its maker does, where the system says."""
    return _field(info, "model name", "Model", "cpu model") or platform.processor() or platform.machine()


def _status_bytes(name: str) -> int | None:
    found = _field(Path("/proc/self/status"), name)
    return int(found.split()[0]) * 1024 if found else None


def _field(file: Path, *names: str) -> str | None:
    """Return the value of the first line of `name: value` with one of these names."""
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in names:
                return " ".join(value.split())
    return None


@dataclass
class Gpu:
    """A CUDA device: `wait` until it is done, and how many of its bytes are in use.

    A library's pool gives no memory back, so that what is in use beyond that at the start is the most that there was.
    """

    wait: Callable[[], None]
    free_and_total: Callable[[], tuple[int, int]]

    def __post_init__(self) -> None:
        self._at_start = self._used()

    def held(self) -> int:
        """Return the bytes in use since the start."""
        return self._used() - self._at_start

    def _used(self) -> int:
        free, total = self.free_and_total()
        return int(total) - int(free)

    @classmethod
    def from_cupy(cls) -> Self:
        """Return the device as CuPy sees it; raise `UnavailableError` where it does not answer."""
        try:
            arrays.backend("cupy")
        except RuntimeError as error:
            raise UnavailableError(str(error)) from None
        import cupy

        return cls(lambda: cupy.cuda.get_current_stream().synchronize(), cupy.cuda.runtime.memGetInfo)

    @classmethod
    def from_torch(cls, torch: Any) -> Self:
        """Return the device as torch sees it; raise `UnavailableError` where it sees none."""
        if not torch.cuda.is_available():
            raise UnavailableError(
                "--against transformers with --backend cupy needs a torch that sees the CUDA device: install one "
                "built for its CUDA, from pytorch.org"
            )
        return cls(torch.cuda.synchronize, torch.cuda.mem_get_info)


def describe(threads: int, backend: str = "numpy") -> dict[str, Any]:
    """Name processor, memory, system and versions, and the backend's device; a package that is not installed is not."""
    import numpy as np

    import refdiff

    versions = {"refdiff": refdiff.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    device = {}
    if backend == "cupy":
        Gpu.from_cupy()  # says so where it does not answer
        import cupy

        runtime = cupy.cuda.runtime
        device["device"] = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        major, minor = divmod(runtime.runtimeGetVersion(), 1000)
        versions |= {"cupy": cupy.__version__, "cuda": f"{major}.{minor // 10}"}
    memory = physical_memory()
    build: Any = np.show_config(mode="dicts")
    blas = build.get("Build Dependencies", {}).get("blas", {})
    return {
        **device,
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "memory_bytes": None if memory == UNKNOWN_MEMORY else memory,
        "system": f"{platform.system()} {platform.machine()}",
        "blas": " ".join(filter(None, (blas.get("name"), blas.get("version")))),
        "versions": versions,
    }


def one_line(machine: dict[str, Any]) -> str:
    """The machine as a sentence under a table."""
    names = {"python": "Python", "numpy": "NumPy", "onnxruntime": "ONNX Runtime", "cupy": "CuPy", "cuda": "CUDA"}
    versions = ", ".join(f"{names.get(name, name)} {number}" for name, number in machine["versions"].items())
    memory = f", {machine['memory_bytes'] / 1e9:.0f} GB" if machine["memory_bytes"] else ""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    card = f"{machine['device']}; " if "device" in machine else ""
    return (
        f"{card}{machine['processor']}, {cores}{memory}, {machine['system']}; {threads}; {machine['blas']}; {versions}"
    )


def commit(package: Path = Path(__file__).parents[1]) -> str | None:
    """Name the commit that a package's source is of, and whether it was changed; None where git does not know it."""

    def git(*command: str) -> str:
        words = ["git", "-C", str(package), *command]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603, these commands of git

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an environment within another project's checkout is not it
        changed = " with changes" if git("status", "--porcelain", "--", ".") else ""
        return git("rev-parse", "--short=7", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return None
