"""The machine that is measured: its description without paths or host names, memory in use, and the CUDA device."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from refdiff.backends.numpy.thread_pool import cores
from refdiff.memory import UNKNOWN_MEMORY, physical_memory

SIXTEEN_BITS = ("float16", "bfloat16")
"""Types that matrices are kept in on a device; what is computed between them stays float32 here."""

PACKAGES = ("numpy", "transformers", "torch", "onnxruntime")


class UnavailableError(RuntimeError):
    """A side that cannot be measured here; the message says what to install."""


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor as its maker does, where the system says."""
    return _field(info, "model name", "Model", "cpu model") or platform.processor() or platform.machine()


def _field(file: Path, *names: str) -> str | None:
    """Return the value of the first line of `name: value` with one of these names."""
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in names:
                return " ".join(value.split())
    return None


def describe(threads: int, backend: str = "numpy") -> dict[str, Any]:
    """Name processor, memory, system and versions, and the backend's device; a package that is not installed is not."""
    import numpy as np

    import refdiff

    versions = {"refdiff": refdiff.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    device = {}
    if backend == "cupy":
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


def commit(package: Path = Path(__file__).parents[1]) -> str | None:
    """Name the commit that a package's source is of, and whether it was changed; None where git does not know it."""

    def git(*command: str) -> str:
        words = ["git", "-C", str(package), *command]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603, these commands of git

    with suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", "__init__.py")  # an environment within another project's checkout is not it
        return git("rev-parse", "--short=7", "HEAD") + (
            " with changes" if git("status", "--porcelain", "--", ".") else ""
        )
    return None
