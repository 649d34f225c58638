"""Every name of CuPy that the code calls is there, with the arguments of the call, in the CuPys that it may meet."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

from tests.cuda import cupy_uses
from tests.cuda.cupy_uses import Use
from tests.cuda.wheels import fetched

ROOT = Path(__file__).parents[2]


def oldest() -> str:
    """The oldest CuPy that setup.cfg admits."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    match = re.search(r"cupy-cuda12x\[ctk\]>=([\d.]+)", config["options.extras_require"]["cupy"])
    assert match is not None
    return match[1]


CUPYS = {
    "oldest, CUDA 12": ("12", f"cupy-cuda12x=={oldest()}.*", "fastrlock"),
    "newest, CUDA 12": ("12", "cupy-cuda12x>=14", "cuda-pathfinder"),
    "oldest, CUDA 13": ("13", "cupy-cuda13x==13.*", "fastrlock"),
    "newest, CUDA 13": ("13", "cupy-cuda13x>=14", "cuda-pathfinder"),
}


def hollow_cublas(cupy: Path, cuda: str, folder: Path) -> None:
    """Make libraries with cuBLAS's names and nothing in them: enough to import CuPy's module, without its 600 MB."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("libraries without their content are made by gcc on Linux")
    (module,) = cupy.glob("cupy_backends/cuda/libs/cublas.*.so")
    names = sorted(set(re.findall(rb"cublas[A-Z]\w+", module.read_bytes())))
    functions = "".join(f"int {name.decode()}(void) {{ return 1; }}\n" for name in names)
    for library, text in (("libcublas", functions), ("libcublasLt", "")):
        target = f"{library}.so.{cuda}"
        command = ["gcc", "-shared", "-fPIC", "-w", "-x", "c", "-", f"-Wl,-soname,{target}", "-o", folder / target]
        subprocess.run(command, input=text, text=True, check=True)


def ask(folder: Path, hollow: Path, found: list[Use]) -> Any:
    """Run the questions in a process of their own; a warning at import fails, but for one of two CuPys.

    So that it does in every environment as in one that has a CuPy, there is another, of which the name is all.
    """
    other = hollow / "cupy_cuda110-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: cupy-cuda110\nVersion: 1.0\n")
    paths = os.pathsep.join(map(str, (folder, ROOT, hollow)))
    environment = {**os.environ, "PYTHONPATH": paths, "LD_LIBRARY_PATH": str(hollow)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.cuda.cupy_uses"],
        input=cupy_uses.as_json(found), env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", CUPYS)
def test_cupy_has_what_is_asked_of_it(name: str, tmp_path: Path) -> None:
    cuda, *requirements = CUPYS[name]
    folder = fetched(*requirements)
    hollow_cublas(folder, cuda, tmp_path)
    found = cupy_uses.uses(ROOT / "refdiff")
    assert Use("cupy.empty", "backends/cupy/device.py", True, 1, ("dtype",)) in found
    assert {"array_api_compat.cupy.permute_dims", "cupy.cuda.cublas.gemmEx"} <= {use.path for use in found}
    planted = [Use("cupy.no_such_function", "planted"), Use("cupy.empty", "planted", True, 1, ("no_such_argument",))]
    answer = ask(folder, tmp_path, [*found, *planted])
    assert [said for said in answer["problems"] if "planted" not in said] == []
    assert len(answer["problems"]) == len(planted)
    major = "13" if name.startswith("oldest") else "14"
    assert answer["version"].startswith(major)
    if not Path("/dev/nvidiactl").exists():
        assert "cuda" in answer["refused"].lower()
