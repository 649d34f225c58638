"""A command whose checkpoint is cut short or overwritten in place while it reads it."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.cli.mapped_files import explanation, mapped_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of mapped files are read from /proc")

# The command itself, but for one thing: as soon as the model is loaded, {what} happens to its weights.
PROGRAM = """
import os, sys
import refdiff.cli.generate as module
from refdiff.cli import main

def changed(*args, load=module.load, **options):
    result = load(*args, **options)
    path = "model/model.safetensors"
    {what}
    return result

module.load = changed
sys.exit(main(["generate", "-m", "model", "h", *sys.argv[1:]]))
"""
CUT = "os.truncate(path, 5000)"
OVERWRITTEN = "with open(path, 'wb') as file: file.write(bytes(5000))"
RENAMED = "os.replace('new', path)"
Generate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def generate(environment: dict[str, str], reciting: Path, here: Path) -> Generate:
    """Run the program with a copy of a checkpoint."""
    shutil.copytree(reciting, here / "model")
    (here / "new").write_bytes(bytes(5000))

    def generate(what: str, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM.format(what=what), *flags]
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60}
        return subprocess.run(command, env=environment, check=False, **how)

    return generate


@pytest.mark.parametrize("what", [CUT, OVERWRITTEN])
@pytest.mark.parametrize("kernels", [[], ["--threads", "1"]])
def test_the_error_names_the_file(generate: Generate, what: str, kernels: list[str]) -> None:
    done = generate(what, *kernels)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"refdiff generate: error: \S*model/model.safetensors: was cut short or overwritten while it was in use; write "
        r"a new file beside it and rename that, or add --no-mmap\n",
        done.stderr,
    )


@pytest.mark.parametrize(("what", "flags"), [(CUT, ["--no-mmap"]), (RENAMED, [])])
def test_what_was_read_whole_or_is_another_file_does_not_change(
    generate: Generate, what: str, flags: list[str]
) -> None:
    done = generate(what, "-q", *flags)
    assert (done.returncode, done.stdout, done.stderr) == (0, "éあ😀!\n", "")


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
