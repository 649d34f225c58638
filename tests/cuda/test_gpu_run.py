"""tests/gpu_run.sh without a device: its commands are ones that there are, and its report says what happened.

A stand-in for nvidia-smi and one for Python run what it runs; the commands themselves run nowhere but on a device.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from refdiff.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "gpu_run.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="a script of bash")

PYTHON = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
    *"$FAILING"*) echo "what went wrong"; exit 3 ;;
    *"$SLOW"*) echo "half way"; sleep 30 ;;
    *"import cupy, numpy"*) echo "Python 3 and CuPy" ;;
    *) echo "it passed" ;;
esac
"""


def script(*arguments: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the script in this environment alone."""
    command = [shutil.which("bash") or "bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def commands(only: str = "") -> list[list[str]]:
    """The commands of a dry run."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GPU_RUN_")}
    done = script(environment={**own, "GPU_RUN_DRY": "1", "GPU_RUN_ONLY": only})
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("Nothing was run: these are the commands.")
    return [shlex.split(line.strip("`")) for line in done.stdout.splitlines() if line.startswith("`")]


SMI = """#!/bin/sh
[ -n "$*" ] || echo "$HEADER"
echo 'A Card'
"""
"""Without options it shows a table, in whose header are its versions."""


def stand_ins(folder: Path, *names: str, python: str = PYTHON) -> dict[str, str]:
    """Put them into a folder, and nvidia-smi; the environment in which they are found first."""
    for name, text in {**dict.fromkeys(names, python), "nvidia-smi": SMI}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "calls").touch()
    return {
        "PATH": f"{folder}:/usr/bin:/bin", "TMPDIR": str(folder),
        "CALLS": str(folder / "calls"), "FAILING": "nothing", "SLOW": "nothing",
    }  # fmt: skip


class Ran(NamedTuple):
    """How the script ended, what it said of that, its report, and what Python was asked."""

    status: int
    said: str
    report: str
    calls: list[str]


def run(folder: Path, *names: str, python: str = PYTHON, **more: str) -> Ran:
    """Run it with stand-ins: with the Python that is there, or one of these names that it is to find."""
    environment = stand_ins(folder, *(names or ("python",)), python=python)
    if not names:
        environment |= {"PYTHON": str(folder / "python"), "GPU_RUN_HERE": "1"}
    report = folder / "reports" / "report.md"
    done = script(report, environment=environment | more)
    assert not Path(f"{report}.log").exists()
    return Ran(done.returncode, done.stderr, report.read_text(), (folder / "calls").read_text().splitlines())


def test_every_kernel_has_a_small_test_for_the_sanitizer() -> None:
    """Those of the layers, and what is none: RoPE with the cache, the choice of a token, a recorded step."""
    found = [words for words in commands() if "--error-exitcode" in words]
    assert len(found) == 4
    for words in found:
        assert words[words.index("-k") + 1] == "small"
        assert "REFDIFF_NO_POOL=1" in words
    pieces = (ROOT / "tests/backends/cupy/test_on_a_gpu.py").read_text().split("\n\n\n")
    small = [re.findall(r"^def (test_\w+)", piece, re.MULTILINE) for piece in pieces if '"small' in piece]
    assert [name for names in small for name in names] == [
        "test_decoding_is_recorded_and_replayed_as_it_is_done_step_by_step",
        "test_rope_and_the_cache_in_one_kernel",
        "test_choose_kernel",
        "test_kernel_equals_its_layer",
    ]


def test_races_are_looked_for_in_all_kernels_that_are_ours_and_the_rest_in_all_that_run() -> None:
    sources = (ROOT / "refdiff/backends/cupy/cuda").glob("*.cu")
    kernels = [x for path in sources for x in re.findall(r"__global__ void (?:.* )?(\w+)\(", path.read_text())]
    assert len(kernels) >= 12
    for words in commands("sanitizer"):
        asked = [value for name, value in pairwise(words) if name == "--kernel-name"]
        wanted = kernels if words[words.index("--tool") + 1] == "racecheck" else []
        assert sorted(asked) == sorted(f"kne={name}" for name in wanted)


def test_its_commands_are_ones_that_there_are() -> None:
    found = [words[words.index("refdiff") + 1 :] for words in commands() if "refdiff" in words]
    assert [words[0] for words in found] == ["generate", "bench", "bench", "bench", "bench"]
    for words in found:
        assert build_parser().parse_args(words).backend == "cupy"
    assert {words[words.index("--dtype") + 1] for words in found[1:4]} == {"float32", "float16", "bfloat16"}
    assert "--train" in found[4]


def test_paths_exist_and_goals_are_compared_with_the_benchmark() -> None:
    found = commands()
    assert sum("pytest" in words for words in found) == 8
    paths = [word for words in found if "pytest" in words for word in words if word.startswith("tests/")]
    paths += [f"{name.replace('.', '/')}.py" for name in re.findall(r"-m (tests[.\w]+)", SCRIPT.read_text())]
    assert all((ROOT / path).exists() for path in paths)
    first, *modules = [words for words in found if any(word.startswith("tests.") for word in words)]
    assert first[-1] == "tests.cuda.decoding_profile"
    assert [words[-2] for words in modules] == ["tests.cuda.goals"] * 2
    written = [words[words.index("--json") + 1] for words in found if "--json" in words]
    assert [words[-1] for words in modules] == written[1:]


@pytest.mark.parametrize(
    ("only", "says"),
    [
        ("bench:bfloat16", ["--dtype bfloat16", "tests.cuda.goals"]),
        ("sanitizer:racecheck,bench:float32", ["--tool racecheck", "--dtype float32"]),
        ("tests,train,profile", ["decoding_profile", "nsys", "--train", "-n auto"]),
    ],
)
def test_steps_can_be_chosen(only: str, says: list[str]) -> None:
    found = commands(only)
    assert len(found) == len(says)
    for words, said in zip(found, says, strict=True):
        assert said in " ".join(words)


def test_a_step_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    status, _, report, calls = run(tmp_path, FAILING="tests/layers")
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
    assert len([call for call in calls if "-m refdiff bench" in call]) == 4


def test_all_that_passed_and_what_was_not_run_is_said(tmp_path: Path) -> None:
    status, _, report, calls = run(tmp_path)
    assert status == 0
    assert report.rstrip().endswith("All that was run passed.")
    left = re.search(r"^Not run, or not measured: (\d+) of the above\.$", report, re.MULTILINE)
    assert left is not None
    assert int(left[1]) == report.count("\nNot run: ")
    assert "-m tests.cuda.decoding_profile" in calls
    assert len([call for call in calls if "--against transformers" in call]) == 4


@pytest.mark.parametrize("slow", ["nothing", "the shell"])
def test_output_of_a_step_before_a_signal_is_in_the_report(tmp_path: Path, slow: str) -> None:
    """Also where the step gets ahead of the shell that has started it."""
    environment = stand_ins(tmp_path, "python") | {"PYTHON": "python", "GPU_RUN_HERE": "1"}
    environment |= {"GPU_RUN_ONLY": "layers", "SLOW": "tests/layers"}
    if slow == "the shell":  # beside a job it pauses before each command
        (tmp_path / "slow").write_text("set -T; trap '[[ -z $(jobs -pr) ]] || sleep 0.3' DEBUG")
        environment |= {"BASH_ENV": str(tmp_path / "slow")}
    report = tmp_path / "report.md"
    with subprocess.Popen(
        ["bash", str(SCRIPT), str(report)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        log, until = Path(f"{report}.log"), time.monotonic() + 20
        while not (log.exists() and "half way" in log.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        assert "half way" in log.read_text(), "as it comes, beside the report"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    text = report.read_text()
    assert re.search(r"\ninterrupted after \d+ s\n\n```\nhalf way\n```\n\nA signal ended the run here", text)
    assert not log.exists()


@pytest.mark.parametrize("smi", [None, "#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n"])
def test_without_a_device_it_says_so(tmp_path: Path, smi: str | None) -> None:
    for name in ("cat", "date", "dirname", "mkdir", "mktemp", "rm", "tee"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    if smi is not None:
        (tmp_path / "nvidia-smi").write_text(smi)
        (tmp_path / "nvidia-smi").chmod(0o755)
    done = script(tmp_path / "report.md", environment={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr == "no nvidia-smi that names a card: this needs a machine with a CUDA device\n"
    assert f"Stopped: {done.stderr.strip()}." in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("header", "cupy", "torch"),
    [
        ("| NVIDIA-SMI 570.1    Driver Version: 570.1    CUDA Version: 12.8     |", "cuda12x", "torch>=2.6,<2.11"),
        ("| NVIDIA-SMI 610.1    KMD Version: 610.1    CUDA UMD Version: 13.3    |", "cuda13x", "torch>=2.6"),
        ("| NVIDIA-SMI 610.1                                                    |", "cuda12x", "torch>=2.6,<2.11"),
    ],
)
def test_installed_packages_are_for_the_cuda_of_the_driver(tmp_path: Path, header: str, cupy: str, torch: str) -> None:
    """And versions are said before torch, which may replace libraries, and after."""
    python = PYTHON.replace(
        'case "$*" in', 'case "$*" in\n    *"-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;'
    )
    ran = run(tmp_path, "python3", python=python, HEADER=header, GPU_RUN_ONLY="train", PYTHON="python3")
    assert ran.status == 0
    assert [call for call in ran.calls if "pip install" in call] == [
        f"-m pip install -q .[test] cupy-{cupy}[ctk]>=14", f"-m pip install -q {torch} transformers>=5.24,<6"
    ]  # fmt: skip
    assert ran.report.count("Python 3 and CuPy") == 2
