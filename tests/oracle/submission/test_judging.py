"""Known ways to cheat are caught, correct kernels pass, and the judge survives both."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, cases
from refdiff.oracle.submission import confine, judge_file, judging, process
from refdiff.oracle.submission.judging import JudgeReport
from refdiff.oracle.submission.process import ProcessLimits
from tests.oracle.test_from_c import build

KERNELS = Path(__file__).parent / "kernels"
CHEATS = KERNELS / "cheats.py"
HONEST = KERNELS / "honest.py"
SPEC = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=4, layer=2)
SMALL = ProcessLimits(seconds=30.0, memory=2**29)
SHORT = ProcessLimits(seconds=2.0)
HELD = "the kernel held more than 0.5 GiB: --memory allows more"
CONFINED, REFUSED = "PermissionError: [Errno 13]", "Operation not permitted"
FORBIDDEN = "`refdiff judge --help` says what a kernel may do"
"""What Linux says, not an audit hook."""
NEEDS = {CONFINED: "Landlock", FORBIDDEN: "Landlock", REFUSED: "seccomp"}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")


def _judge(function: str, *, path: Path = CHEATS, limits: ProcessLimits = SMALL, **options: Any) -> JudgeReport:
    given = {"recipe": "float32", "profiles": ["natural"], "seed": 9000, **options}
    return judge_file(path, SPEC, function=function, limits=limits, **given)


@pytest.mark.parametrize(
    ("cheat", "says"),
    [
        ("cached_by_pointer", "with other numbers in the same memory"),
        ("cached_by_object", "with other numbers in the same memory"),
        ("cached_by_queries", "alone: "),
        ("two_buffers_in_turn", "has changed with a later call"),
        ("view_of_an_input", "out is in the memory of the inputs: return a new array"),
        ("memory_of_the_last_call", "the same inputs gave other bits"),
        ("writes_into_inputs", "has changed its input v"),
        ("knows_the_published_sizes", "rows are wrong"),
        ("no_work_on_large_sizes", "rows are wrong"),
        ("another_each_time", "the same inputs gave other bits"),
        ("right_at_first", "the same inputs gave other bits"),
        ("imports_the_reference", "refdiff cannot be imported"),
        ("reads_the_source_of_the_reference", CONFINED),
        ("takes_the_hook_away", CONFINED),
        ("asks_another_interpreter", REFUSED),
        ("patches_the_comparison", "rows are wrong"),
        ("searches_the_heap", "rows are wrong"),
        ("exits_with_status_0", "ended with exit status 0"),
        ("raises_system_exit", "raised SystemExit: 0"),
        ("prints_a_report", "rows are wrong"),
        ("writes_answers_of_its_own", "something other than responses"),
        ("closes_the_pipes", "has closed the pipe"),
        ("a_subclass", "out is a submission.Lazy: return an array of NumPy"),
        ("computes_later", "out is a submission.Later: return an array of NumPy"),
        ("crashes", "ended with signal SIGSEGV"),
        ("eats_memory", "raised MemoryError"),
        ("returns_too_much", "larger than any output of these inputs"),
        ("shortens_the_shared_memory", "has changed its input"),
        ("overwrites_the_reference", FORBIDDEN),
        ("renames_its_own_file", FORBIDDEN),
        ("ends_the_judge", REFUSED),
        ("leaves_a_process", "Operation not permitted; --allow-processes lets it start others"),
        ("limits_the_files_of_the_judge", REFUSED),
        ("slows_all_of_the_user", REFUSED),
        ("sends_by_a_pair_of_sockets", REFUSED),
        ("changes_times", REFUSED),
        ("changes_attributes", REFUSED),
        ("opens_a_terminal", CONFINED),
        ("keeps_a_key", REFUSED),
        ("memory_in_no_process", "Function not implemented"),
        ("shared_memory", HELD),
        ("remembers_in_shared_memory", CONFINED),
    ],
)
def test_a_cheat_is_caught(cheat: str, says: str) -> None:
    report = _judge(cheat)
    text = " ".join(str(report).split())
    if says in NEEDS and NEEDS[says] not in report.confinement:
        says = f"without {NEEDS[says]}"
    else:
        assert report.status == "fail"
    assert says in text
    assert "has changed its input" in says or "has changed its input" not in text


@pytest.mark.parametrize("cheat", ["patches_the_timer", "hangs"])
def test_a_call_has_a_limit(cheat: str) -> None:
    assert "took more than 2 s" in str(_judge(cheat, limits=SHORT))


def test_the_environment_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_TEST_SECRET", "1")
    assert _judge("sees_a_secret")


@LINUX
def test_processes_share_the_limit_of_memory() -> None:
    assert HELD in str(_judge("memory_of_many_processes", limits=replace(SMALL, processes=True)))


@LINUX
def test_the_judge_runs_on_all_its_cores() -> None:
    cores = os.sched_getaffinity(0)
    assert _judge("pins_the_judge")
    assert os.sched_getaffinity(0) == cores


@LINUX
def test_the_report_says_what_confines() -> None:
    report = _judge("kernel", path=HONEST)
    known = {"Landlock", "seccomp", "network namespace"}
    assert set(report.to_dict()["confinement"]) == set(report.confinement) <= known
    assert f"confined by {', '.join(report.confinement)}" in str(report)
    assert str(report).count("\nwithout ") == len(known - set(report.confinement))


@LINUX
def test_a_namespace_has_no_network() -> None:
    code = """
import errno, socket
from refdiff.oracle.submission.confine import leave_network
print(leave_network())
print(socket.socket(type=socket.SOCK_DGRAM).connect_ex(("192.0.2.1", 9)) == errno.ENETUNREACH)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if done.stdout.startswith("False"):
        pytest.skip("users of this system may not make network namespaces")
    assert done.stdout == "True\nTrue\n"


ATTACKS = re.findall(r"^ATTACK\((\w+)", (KERNELS / "attacks.c").read_text(), re.M)


@LINUX
@pytest.mark.parametrize("attack", ATTACKS)
def test_linux_refuses_what_a_shared_library_tries(attack: str, tmp_path: Path) -> None:
    """The judge survives, and no audit hook of Python has a part in it."""
    report = _judge(attack, path=build("c", tmp_path / "attacks.so", source=KERNELS / "attacks.c"))
    if not {"Landlock", "seccomp"} <= set(report.confinement):
        pytest.skip(f"confined by {report.confinement} alone")
    texts = {o.text for o in report.cases.values() if not o.declined}
    assert texts == {
        f"the kernel raised RuntimeError: {attack} returned 50, expected 0, or 1 for what it does not serve"
    }
    assert not Path(tempfile.gettempdir(), "refdiff-attack").exists()


def test_a_shared_library_that_breaks_something(tmp_path: Path) -> None:
    assert len(ATTACKS) == 12
    library = build("c", tmp_path / "attacks.so", source=KERNELS / "attacks.c")
    assert "has changed its input q" in str(_judge("writes_into_inputs", path=library))
    assert "ended with signal SIGSEGV" in str(_judge("crashes", path=library))


def test_rows_that_are_never_written_are_not_zero() -> None:
    """More queries than keys: the first rows see none, and are zero. NumPy itself keeps what it frees below 1 KiB."""
    sizes = [(2, 40, 8)]
    assert _judge("kernel", path=HONEST, sizes=sizes)
    assert _judge("rows_never_written", sizes=sizes).cases["2x40x8-0"].status == "fail"


def test_a_seed_that_a_kernel_knows_is_of_no_use(tmp_path: Path) -> None:
    for path in (CHEATS, HONEST):
        shutil.copy(path, tmp_path)
    spec = importlib.util.spec_from_file_location("honest", HONEST)
    honest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(honest)
    known = [case for seed in (0, 1) for case in cases("natural", seed, spec=SPEC)]
    answers = {hashlib.sha256(c.inputs["q"].tobytes()).hexdigest(): honest.kernel(SPEC, c.inputs) for c in known}
    np.savez(tmp_path / "answers.npz", **answers)
    names = [case.name for case in known[:2]]
    report = _judge("knows_a_seed", path=tmp_path / "cheats.py", seed=0)
    assert all(" alone: " in report.cases[name].text for name in names), "the first two sets of numbers are known"
    report = _judge("knows_a_seed", path=tmp_path / "cheats.py", seed=None)
    natural = [o for name, o in report.cases.items() if name.startswith("natural")]
    assert [(o.status, " alone: " in o.text) for o in natural] == [("fail", False)] * 2


def test_the_process_finds_libraries_where_the_judge_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those too that its own code imports, such as NumPy in a user's folder."""
    shutil.copy(HONEST, tmp_path)
    (tmp_path / "kernel.py").write_text("from honest import kernel\nfrom ml_dtypes import FOUND\n")
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "ml_dtypes.py").write_text("FOUND = True\n")
    monkeypatch.syspath_prepend(tmp_path / "libraries")
    report = _judge("kernel", path=tmp_path / "kernel.py")
    assert report, str(report)


DECODING = """
import numpy as np
from honest import kernel as dense

def kernel(spec, inputs, dout=None):
    if "k_pages" not in inputs or "cu_seqlens_q" in inputs or dout is not None:
        return NotImplemented
    found = []
    for q, table, length in zip(inputs["q"], inputs["block_table"], inputs["lengths"]):
        k, v = (np.moveaxis(inputs[n][table], 1, 0)[:, None] for n in ("k_pages", "v_pages"))
        k, v = (x.reshape(1, x.shape[0], -1, x.shape[-1])[:, :, :length] for x in (k, v))
        vectors = {n: x for n, x in inputs.items() if n.startswith("lambda_")}
        found.append(dense(spec, {"q": q[None], "k": k, "v": v, **vectors}))
    return np.concatenate(found)
"""


def test_decoding_from_pages_needs_no_backward(tmp_path: Path) -> None:
    """A kernel that declines pages with dout is called without, and judged by its output; here all else is declined."""
    shutil.copy(HONEST, tmp_path)
    (tmp_path / "kernel.py").write_text(DECODING)
    report = _judge("kernel", path=tmp_path / "kernel.py", profiles=["serving"])
    compared = {name.split("-")[1] for name, o in report.cases.items() if o.compared and o.status == "pass"}
    assert compared == {"0", "2", "4"}, report
    assert report.gradients
    assert "\ndeclined 6: sizes 4, serving 2" in str(report)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The cheats where no other test has them: a process that runs them is one of this test."""
    shutil.copy(HONEST, tmp_path)
    return Path(shutil.copy(CHEATS, tmp_path))


def _running(word: str) -> list[int]:
    """Processes whose command line has a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_no_process_outlives_the_run(copied: Path) -> None:
    report = _judge("leaves_a_process", path=copied, limits=ProcessLimits(seconds=20.0, processes=True))
    assert report
    assert not _running(str(copied))


def test_nothing_is_expected_while_the_kernel_runs(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth is computed when the process has gone, so that no memory of the judge held it."""
    alive: list[list[int]] = []

    def judge_outputs(*args: Any) -> Any:
        alive.append(_running(str(copied)))
        return original(*args)

    original = judging.judge_outputs
    monkeypatch.setattr(judging, "judge_outputs", judge_outputs)
    assert _judge("not_asleep_but_waiting", path=copied)
    assert len(alive) == 18
    assert not any(alive)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("preset", "function"),
    [
        *((preset, "kernel") for preset in ("hf_diffllama", "ms_v1", "timm", "phi4flash", "motif")),
        *(("hf_diffllama", function) for function in ("tiled", "in_float32", "as_modules_return_it")),
    ],
)
def test_a_correct_kernel_passes(preset: str, function: str, recipe: str) -> None:
    key_heads = 4 if preset == "timm" else 2
    spec = Spec.preset(preset, query_heads=4, key_heads=key_heads, head_dim=4, layer=1)
    profiles = ["natural", "discriminating", "tiny_values"]
    report = judge_file(HONEST, spec, recipe=recipe, function=function, profiles=profiles, seed=9000)
    assert report, str(report)
    assert sum(outcome.compared for outcome in report.cases.values()) >= 8


@pytest.mark.parametrize(
    ("function", "profile", "recipe"),
    [
        ("as_many_keys_as_queries", "natural", "bfloat16"),
        ("part_of_a_larger_array", "natural", "float32"),
        ("no_numbers_of_an_input", "degenerate", "float32"),
    ],
)
def test_a_correct_plain_kernel_passes(function: str, profile: str, recipe: str) -> None:
    report = judge_file(HONEST, "attention", recipe=recipe, function=function, profiles=[profile])
    assert report, str(report)


def test_the_process_reads_nothing_hidden_whatever_its_name(tmp_path: Path) -> None:
    """Everything in a folder on the way to a hidden one is listed by itself, but for links."""
    (tmp_path / "site" / "refdiff" / "oracle").mkdir(parents=True)
    (tmp_path / "site" / "numpy").mkdir()
    (tmp_path / "site" / "six.py").touch()
    (tmp_path / "link").symlink_to(tmp_path / "site")
    hidden = [str(tmp_path / "site" / "refdiff")]
    found = set(confine.readable_paths(hidden, str(tmp_path)))
    assert found == {str(tmp_path / "site" / name) for name in ("numpy", "six.py")}


CONFINED_PROGRAM = """
import json, os, sys
config = json.loads(sys.argv[1])
open(config["scratch"] + "/made", "w").close()
os.mkdir(config["scratch"] + "/folder")
os.rename(config["scratch"] + "/made", config["scratch"] + "/folder/made")
open(os.devnull, "w").close()
open(config["visible"]).close()
def refused(do):
    try:
        do()
    except OSError:
        return True
    return False
print(*(refused(do) for do in (
    lambda: open(config["hidden"][0] + "/secret"),
    lambda: open(config["visible"], "a"),
    lambda: os.rename(config["visible"], config["visible"] + "2"),
    lambda: os.mkdir(config["hidden"][0] + "2"),
    lambda: open(f"/proc/{os.getppid()}/mem", "rb"),
)))
"""


def test_operations_that_landlock_refuses(tmp_path: Path) -> None:
    for name in ("hidden", "scratch"):
        (tmp_path / name).mkdir()
    for name in ("hidden/secret", "visible"):
        (tmp_path / name).touch()
    (tmp_path / "program.py").write_text(CONFINED_PROGRAM)
    config = {name: str(tmp_path / name) for name in ("scratch", "visible")}
    config |= {"hidden": [str(tmp_path / "hidden")], "memory": 2**29, "path": [], "processes": False, "responses": 2}

    def run(judge: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, confine.__file__, json.dumps({**config, "judge": judge}), tmp_path / "program.py"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    *files, memory = run(os.getpid()).stdout.split()
    confined = confine.landlock_version() > 0
    assert files == [str(confined)] * 4
    assert memory == "True" or not confined
    if sys.platform == "linux":
        done = run(os.getppid())
        assert (done.returncode, done.stdout) == (-signal.SIGKILL, ""), "its judge has ended before it could notice"


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    runpy.run_path(confine.__file__)
    monkeypatch.setattr(judging, "os", SimpleNamespace(name="nt"))
    with pytest.raises(OSError, match="a kernel is judged on Linux or macOS only"):
        _judge("kernel", path=HONEST)


@pytest.mark.parametrize("shape", [[-1], [2**50], [1] * 40, [True]])
def test_a_shape_that_is_none(shape: list[Any]) -> None:
    assert process.is_shape([2, 0])
    assert not process.is_shape(shape)


@LINUX
def test_a_kernel_ends_with_a_judge_that_is_killed(tmp_path: Path) -> None:
    code = "import os, time\n\ndef kernel(spec, inputs):\n    open('pid', 'w').write(f'{os.getpid()}\\n')\n"
    (tmp_path / "sleeps.py").write_text(f"{code}    time.sleep(60)\n")
    command = [sys.executable, "-m", "refdiff", "judge", str(tmp_path / "sleeps.py"), "--timeout", "600"]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE) as judge:
        while not (told := [x.read_text() for x in tmp_path.glob("*/pid") if x.read_text().endswith("\n")]):
            assert judge.poll() is None, "the judge has ended"
            time.sleep(0.05)
        judge.kill()
    until = time.monotonic() + 30
    while _runs(int(told[0])):
        assert time.monotonic() < until, "the kernel still runs"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
