"""The machine that numbers were measured on, in words that fit into a table; no paths, no names of people or hosts."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from refdiff.backends.numpy.thread_pool import cores
from refdiff.bench.device import Gpu

PACKAGES = ("numpy", "transformers", "torch", "onnxruntime")


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
        Gpu.of_cupy()  # says so where it does not answer
        import cupy

        runtime = cupy.cuda.runtime
        device["device"] = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        major, minor = divmod(runtime.runtimeGetVersion(), 1000)
        versions |= {"cupy": cupy.__version__, "cuda": f"{major}.{minor // 10}"}
    build: Any = np.show_config(mode="dicts")
    blas = build.get("Build Dependencies", {}).get("blas", {})
    return {
        **device,
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "memory_bytes": memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "blas": " ".join(filter(None, (blas.get("name"), blas.get("version")))),
        "versions": versions,
    }


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


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor as its maker does, where the system says."""
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model"):
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def memory() -> int | None:
    """Bytes of memory that the machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


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
