"""tests/gpu_run.sh without a device: its commands are ones that there are, and its report says what happened."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from refdiff.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "gpu_run.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="a script of bash")


def script(*arguments: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the script in this environment alone."""
    command = [shutil.which("bash") or "bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def commands() -> list[list[str]]:
    """The commands of a dry run."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GPU_RUN_")}
    done = script(environment={**own, "GPU_RUN_DRY": "1"})
    assert done.returncode == 0, done.stderr
    return [shlex.split(line.strip("`")) for line in done.stdout.splitlines() if line.startswith("`")]


def test_its_commands_are_ones_that_there_are() -> None:
    found = [words[words.index("refdiff") + 1 :] for words in commands() if "refdiff" in words]
    assert [words[0] for words in found] == ["generate", "bench", "bench", "bench", "bench"]
    for words in found:
        assert build_parser().parse_args(words).backend == "cupy"
    assert {words[words.index("--dtype") + 1] for words in found[1:4]} == {"float32", "float16", "bfloat16"}
    assert found[4][-1] == "train:3m,train:30m"


def test_paths_exist() -> None:
    found = commands()
    assert sum("pytest" in words for words in found) == 8
    paths = [word for words in found if "pytest" in words for word in words if word.startswith("tests/")]
    assert all((ROOT / path).exists() for path in paths)


STAND_INS = {
    "python": '#!/bin/sh\ncase "$*" in *tests/layers*) echo "what went wrong"; exit 3 ;; *) echo "it passed" ;; esac\n',
    "nvidia-smi": "#!/bin/sh\necho 'A Card'\n",
}


def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    for name in ("cat", "date", "dirname", "mkdir", "mktemp", "rm", "tee"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    done = script(tmp_path / "report.md", environment={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr == "no nvidia-smi that names a card: this needs a machine with a CUDA device\n"
    assert f"Stopped: {done.stderr.strip()}." in (tmp_path / "report.md").read_text()
