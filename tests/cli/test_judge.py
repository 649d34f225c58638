"""`refdiff judge`: a submitted file → report and exit status."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.oracle.test_from_c import MISTAKES, build

from .conftest import Cli, Done

KERNELS = Path(__file__).parents[1] / "oracle" / "submission" / "kernels"
Judge = Callable[..., Done]


@pytest.fixture
def judge(cli: Cli) -> Judge:
    """Judge a file of the kernels, or one's code, by a few small cases."""
    small = ("--set", "query_heads=4", "--set", "key_heads=2", "--set", "head_dim=4", "--profile", "natural")
    small += ("--seed", "3")
    return lambda kernel, *options: cli("judge", kernel, *small, *options)


def test_a_pass(judge: Judge) -> None:
    done = judge(KERNELS / "honest.py", "--size", "2x5x7")
    assert done.status == 0
    first = "pass: 7 of 7 cases compared, 0 failed; layer 2, seed 3\nno gradients: the kernel takes no dout\n"
    assert done.out.startswith(first)
    assert "judges by the same numbers again" not in done.out


def test_a_fail(judge: Judge) -> None:
    """What the kernel prints is in no report."""
    done = judge(f"{KERNELS / 'cheats.py'}:prints_a_report", "--json")
    report = json.loads(done.out)
    assert (done.status, report["status"]) == (1, "fail")
    assert {case["status"] for case in report["cases"].values()} == {"fail"}
    assert (report["spec"]["head_dim"], report["recipe"]["storage"]) == (4, "float32")


def test_a_verdict_starts_on_a_line_of_its_own_and_ends_with_what_to_do_next(judge: Judge) -> None:
    """It is wrapped already: behind a name, its first line would be broken twice."""
    done = judge(f"{KERNELS / 'cheats.py'}:prints_a_report")
    assert ":\nfail, judged as float32; numbers are value/limit" in done.out
    assert done.out.endswith("-s 3 judges by the same numbers again\n--diagnose names the mistake\n")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("k.py:absent", "", "the file has no function 'absent'; FILE.py:FUNCTION names another"),
        ("k.py", "\n\ndef kernel(:\n", "the kernel raised SyntaxError: invalid syntax (line 3 of k.py)"),
        ("k.py", "\nimport refdiff\n", "cannot be imported in the process of a kernel that is judged (line 2 of k.py)"),
        ("k.so", "no ELF", "the library cannot be loaded: {here}/k.so: file too short"),
        ("k.txt", "not Python", "the file is neither Python nor a library: its name must end in .py, .so or .dylib"),
    ],
)
def test_a_broken_file_is_an_error(name: str, text: str, said: str, here: Path, judge: Judge) -> None:
    (here / name.partition(":")[0]).write_text(text)
    done = judge(name)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"refdiff judge: error: {name.partition(':')[0]}: ")
    assert done.err.endswith(f"{said.format(here=here)}\n")


def test_a_shared_library(here: Path, cli: Cli) -> None:
    """Both kernels of one file; the mistake is in the verdict, and errors say what was wrong."""

    def judge(name: str, *options: str) -> Done:
        return cli("judge", name, "--spec", "attention", "--profile", "modules", "--seed", "3", *options)

    build("c", here / "right.so")
    build("c", here / "wrong.so", *MISTAKES["c"])
    right, wrong = (judge(name, "--symbol", "attend", "--diagnose") for name in ("right.so", "wrong.so"))
    assert (right.status, wrong.status) == (0, 1), right.out
    assert right.out.startswith("pass: 8 of 10 cases compared")
    assert "rows are wrong" in wrong.out
    assert "\nunique: one_future_key_visible\n" in wrong.out
    assert "raised RuntimeError: broken returned 77, expected 0" in judge("right.so:broken").out
    declined = judge("right.so", "--symbol", "attend", "--gradients")  # it takes three inputs, and dout is a fourth
    assert declined.out.startswith("fail: 0 of 10 cases compared, 0 failed; seed 3\ngradients too")
    for options, said in (
        (["--symbol", "nope"], "the library has no function 'nope'; --symbol names another; C++ needs extern \"C\""),
        ([], "the library has no function 'kernel'; --symbol names another; C++ needs extern \"C\""),
    ):
        assert judge("right.so", *options) == (2, "", f"refdiff judge: error: right.so: {said}\n")
    assert judge("none.so", "--symbol", "attend").err == "refdiff judge: error: none.so: no such file\n"
    refused = judge(str(KERNELS / "honest.py"), "--symbol", "attend", "--gradients")
    assert refused.err.startswith("refdiff judge: error: --symbol, --gradients: for a shared library")


def test_a_receipt(here: Path, judge: Judge) -> None:
    """Written where the kernel runs, and judged where it does not: one that would hang is not called."""
    kernel = here / "kernel.py"
    kernel.write_text((KERNELS / "honest.py").read_text())
    assert judge(kernel, "--receipt", "receipt.safetensors").status == 0
    (here / "hangs.py").write_text("def kernel(inputs):\n    while True:\n        pass\n")
    done = judge(kernel, "--verify", "receipt.safetensors")
    assert done.status == 0
    assert done.out.startswith("pass: 6 of 6 cases compared")
    assert "not run here; as the receipt says, it ran on: gpus [" in done.out
    done = judge("hangs.py", "--verify", "receipt.safetensors", "--json")
    assert (done.status, json.loads(done.out)["reasons"]) == (
        1,
        ["hangs.py is not the file of the receipt: its SHA-256 differs"],
    )
    for options, said in ((["--size", "2x5x7"], "sizes [], expected [[2, 5, 7]]"), (["-s", "4"], "seed 3, expected 4")):
        done = judge(kernel, "--verify", "receipt.safetensors", *options)
        assert done.err == f"refdiff judge: error: receipt.safetensors: the receipt is of {said}, as named here\n"


def test_a_folder_is_an_error(here: Path, judge: Judge) -> None:
    assert judge(here) == (2, "", f"refdiff judge: error: {here}: got a folder, expected a file\n")


def test_a_full_disk_of_temporary_files(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    said = "refdiff judge: error: standard output or a temporary file: No space left on device\n"
    assert judge(KERNELS / "honest.py") == (2, "", said)


def test_a_failure_names_the_line_of_the_kernel(here: Path, judge: Judge) -> None:
    (here / "k.py").write_text("import subprocess\ndef kernel(inputs):\n    subprocess.run(['true'])\n")
    done = judge("k.py")
    assert done.status == 1
    assert "(line 3 of k.py)" in done.out


@pytest.mark.parametrize(
    ("kernel", "limit", "unjudged", "said"),
    [
        ("hangs", ["--timeout", "0.5"], 6, "took more than 0.5 s: --timeout allows more"),
        ("eats_memory", ["--memory", "0.4"], 0, "MemoryError"),
    ],
)
def test_limits(kernel: str, limit: list[str], unjudged: int, said: str, judge: Judge) -> None:
    done = judge(f"{KERNELS / 'cheats.py'}:{kernel}", *limit, "--json")
    report = json.loads(done.out)
    assert (done.status, report["compared"], report["unjudged"]) == (1, 0, unjudged)
    assert said in done.out
