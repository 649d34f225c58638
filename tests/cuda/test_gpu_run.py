"""tests/gpu_run.sh without a device: its commands are ones that there are, and its report says what happened.

A stand-in for nvidia-smi and one for Python run what it runs; the commands themselves run nowhere but on a device.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refdiff.cli.options import build_parser

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "gpu_run.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="a script of bash")

PYTHON = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
    *"$FAILING"*) echo "what went wrong"; exit 3 ;;
    *"import cupy, numpy"*) echo "Python 3 and CuPy" ;;
    *) echo "it passed" ;;
esac
"""


def commands() -> list[list[str]]:
    """The commands of a dry run."""
    done = subprocess.run(
        ["bash", str(SCRIPT)], env={**os.environ, "GPU_RUN_DRY": "1"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip().endswith("Nothing was run: these are the commands.")
    return [shlex.split(line.strip("`")) for line in done.stdout.splitlines() if line.startswith("`")]


def run(tmp_path: Path, *, failing: str = "nothing", answers: bool = True) -> tuple[int, str, list[str]]:
    """Run it with stand-ins; its exit status, its report, and what Python was asked."""
    for name, text in (("python", PYTHON), ("nvidia-smi", "#!/bin/sh\necho 'A Card'\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    calls, report = tmp_path / "calls", tmp_path / "reports" / "report.md"
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(tmp_path / "python"), "GPU_RUN_HERE": "1",
        "CALLS": str(calls), "FAILING": failing if answers else 'arrays.backend("cupy")', "TMPDIR": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(SCRIPT), str(report)], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, report.read_text(), calls.read_text().splitlines()


def test_its_tests_are_there() -> None:
    found = [words for words in commands() if "pytest" in words]
    assert len(found) == 8
    for words in found:
        for path in (word for word in words if word.startswith("tests/")):
            assert (ROOT / path).exists()
    names = re.findall(r"^def (test_\w+)", (ROOT / "tests/backends/test_cupy_device.py").read_text(), re.MULTILINE)
    assert {"kernel" in name for name in names} == {True, False}


def test_every_kernel_has_a_small_test_for_the_sanitizer() -> None:
    """Those of the layers, and what is none: RoPE with the cache, the choice of a token, a recorded step."""
    found = [words for words in commands() if "--error-exitcode" in words]
    assert len(found) == 4
    for words in found:
        assert words[words.index("-k") + 1] == "small"
        assert "REFDIFF_NO_POOL=1" in words
    pieces = (ROOT / "tests/backends/test_cupy_device.py").read_text().split("\n\n\n")
    small = [re.findall(r"^def (test_\w+)", piece, re.MULTILINE) for piece in pieces if '"small' in piece]
    assert [name for names in small for name in names] == [
        "test_decoding_is_recorded_and_replayed_as_it_is_done_step_by_step",
        "test_rope_and_the_cache_in_one_kernel",
        "test_choose_kernel",
        "test_kernel_equals_its_layer",
    ]


def test_its_commands_are_ones_that_there_are(tmp_path: Path) -> None:
    found = [words[words.index("refdiff") + 1 :] for words in commands() if "refdiff" in words]
    assert [words[0] for words in found] == ["generate", "bench", "bench", "bench", "bench"]
    for words in found:
        assert build_parser().parse_args(words).backend == "cupy"
    assert {words[words.index("--dtype") + 1] for words in found[1:4]} == {"float32", "float16", "bfloat16"}
    assert "--train" in found[4]


def test_a_step_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    status, report, calls = run(tmp_path, failing="tests/layers")
    assert status == 1
    steps = re.findall(
        r"^## ([^\n]*)\n\n`[^`]*`\n\nexit (\d+) after \d+ s\n\n```\n(.*?)\n```", report, re.MULTILINE | re.DOTALL
    )
    assert [(title, int(code)) for title, code, _ in steps if code != "0"] == [
        ("the layers, with CuPy among the places", 3)
    ]
    assert {text for _, code, text in steps if code == "0"} == {"it passed"}
    assert "what went wrong" in report
    assert report.rstrip().endswith("Something above failed.")
    assert "# refdiff on A Card, " in report
    assert len([call for call in calls if "bench" in call]) == 4


def test_all_that_passed_and_what_was_not_run_is_said(tmp_path: Path) -> None:
    status, report, _ = run(tmp_path)
    assert status == 0
    assert report.rstrip().endswith("All that was run passed.")
    for title, program in (("compute-sanitizer", "compute-sanitizer"), ("profile of decoding", "nsys")):
        if shutil.which(program, path=f"{tmp_path}:/usr/bin:/bin") is None:
            assert re.search(rf"^## {title}\n\nNot run: .*this machine", report, re.MULTILINE)


def test_without_torch_the_bench_is_of_refdiff_alone(tmp_path: Path) -> None:
    _, report, calls = run(tmp_path, failing="import torch")
    assert "Not run: there is no torch that sees the device" in report
    assert not any("--against" in call for call in calls)


def test_where_cupy_does_not_answer_nothing_else_is_run(tmp_path: Path) -> None:
    status, report, calls = run(tmp_path, answers=False)
    assert status == 1
    assert report.rstrip().endswith("Nothing else was run.")
    assert not any("pytest" in call for call in calls)


def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "bash").symlink_to(str(shutil.which("bash")))
    (tmp_path / "dirname").symlink_to(str(shutil.which("dirname")))
    done = subprocess.run(
        [str(tmp_path / "bash"), str(SCRIPT)], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "no nvidia-smi: this needs a machine with a CUDA device\n"
    assert sys.platform != "win32"


@pytest.mark.parametrize(
    ("able", "says"),
    [("python3.12", "pip could not install the tests and cupy-"), (None, "no python3.11 to 3.13 and no python3 is Py")],
)
def test_the_environment_is_made_by_the_first_python_that_can(tmp_path: Path, able: str | None, says: str) -> None:
    names = ("python3.11", "python3.12", "python3.13", "python3")
    texts = {name: PYTHON if name == able else "#!/bin/sh\nexit 1\n" for name in names}
    for name, text in {**texts, "nvidia-smi": "#!/bin/sh\necho 'A Card'\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(calls), "FAILING": "nothing", "TMPDIR": str(tmp_path)
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "report.md")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert ("-m venv" in calls.read_text()) == (able is not None)
