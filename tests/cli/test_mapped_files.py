"""A command whose checkpoint is cut short or overwritten in place while it reads it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refdiff.cli.mapped_files import explanation, mapped_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of mapped files are read from /proc")

# The command itself, but for one thing: as soon as the model is loaded, {what} happens to its weights.
PROGRAM = """
import os, sys
import refdiff.cli.{module} as module
from refdiff.cli import main

def changed(*args, load=module.{function}, **options):
    result = load(*args, **options)
    path = sys.argv.pop()
    {what}
    return result

module.{function} = changed
sys.exit(main(sys.argv[1:-1]))
"""
CUT = "os.truncate(path, 5000)"
OVERWRITTEN = "with open(path, 'wb') as file: file.write(bytes(5000))"


def _run(
    environment: dict[str, str],
    folder: Path,
    what: str,
    *arguments: str,
    module: str = "generate",
    function: str = "load",
) -> subprocess.CompletedProcess[str]:
    code = PROGRAM.format(what=what, module=module, function=function)
    command = [sys.executable, "-c", code, *arguments, str(folder / "model.safetensors")]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=60, check=False
    )


@pytest.mark.parametrize("what", [CUT, OVERWRITTEN])
@pytest.mark.parametrize("kernels", [[], ["--threads", "1"]])
def test_the_error_names_the_file(
    environment: dict[str, str], reciting: Path, tmp_path: Path, what: str, kernels: list[str]
) -> None:
    folder = _copy(reciting, tmp_path)
    result = _run(environment, folder, what, "generate", "-m", str(folder), "h", *kernels)
    assert result.stderr == (
        f"refdiff generate: error: {folder}/model.safetensors: was cut short or overwritten while it was in use; write "
        "a new file beside it and rename that, or add --no-mmap\n"
    )
    assert result.stdout == ""
    assert result.returncode == 1


def test_what_was_read_whole_does_not_change(environment: dict[str, str], reciting: Path, tmp_path: Path) -> None:
    folder = _copy(reciting, tmp_path)
    result = _run(environment, folder, CUT, "generate", "-m", str(folder), "h", "--no-mmap", "-q")
    assert (result.returncode, result.stdout, result.stderr) == (0, "éあ😀!\n", "")


def test_a_file_that_is_renamed_into_place_changes_nothing(
    environment: dict[str, str], reciting: Path, tmp_path: Path
) -> None:
    folder = _copy(reciting, tmp_path)
    (tmp_path / "new").write_bytes(bytes(5000))
    result = _run(
        environment, folder, f"os.replace({str(tmp_path / 'new')!r}, path)", "generate", "-m", str(folder), "h", "-q"
    )
    assert (result.returncode, result.stdout) == (0, "éあ😀!\n")


def test_files_that_are_whole_again_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "a b.safetensors"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert np.frombuffer(memory, np.uint8).sum() == 0
        assert (path, False) in mapped_files()
        assert str(path) in explanation("")
        os.truncate(path, mmap.PAGESIZE)
        assert (path, True) in mapped_files()
        assert explanation("; hint").startswith(f"{path}: was cut short")
        os.truncate(path, 3 * mmap.PAGESIZE)
        assert (path, False) in mapped_files()


def _copy(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder
