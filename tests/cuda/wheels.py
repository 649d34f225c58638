"""Packages that a test looks into without installing them: fetched by pip into a folder of the day's temporary ones.

`REFDIFF_CUDA_WHEELS` names a folder to keep them in between runs.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


@functools.cache
def fetched(*requirements: str) -> Path:
    """Return a folder with these packages alone, without what they depend on; skips where no package index answers."""
    kept = os.environ.get("REFDIFF_CUDA_WHEELS")
    name = "+".join(requirements).replace("=", "-").replace("*", "x").replace("<", "-below-").replace(",", "")
    folder = Path(kept or _temporary()) / name
    if not folder.exists():
        command = [
            sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-compile",
        ]  # fmt: skip
        half = folder.with_name(f"{name}.half")
        done = subprocess.run(
            [*command, "--only-binary=:all:", "--target", half, *requirements],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            offline = "NewConnectionError" in done.stderr or "Temporary failure" in done.stderr
            assert offline, done.stderr
            pytest.skip("no package index answers")
        half.rename(folder)
    return folder


@functools.cache
def _temporary() -> str:
    import atexit
    import shutil

    folder = tempfile.mkdtemp(prefix="refdiff-wheels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
