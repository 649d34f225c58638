"""`refdiff judge`: a submitted file → report and exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Cli, Done

KERNELS = Path(__file__).parents[1] / "oracle" / "judge" / "kernels"
Judge = Callable[..., Done]


@pytest.fixture
def judge(cli: Cli) -> Judge:
    """Judge a file of the kernels, or one's code, by a few small cases."""
    small = ("--set", "query_heads=4", "--set", "key_heads=2", "--set", "head_dim=4", "--profile", "natural")
    return lambda kernel, *options: cli("judge", kernel, *small, *options)


def test_a_pass(judge: Judge) -> None:
    done = judge(KERNELS / "honest.py", "--size", "2x5x7", "--seed", "3")
    assert done.status == 0
    first = "pass: 7 of 7 cases compared, 0 failed; seed 3\nno gradients, which take dout=None\n"
    assert done.out.startswith(first)


def test_a_fail(judge: Judge) -> None:
    """What the kernel prints is in no report."""
    done = judge(f"{KERNELS / 'cheats.py'}:prints_a_report", "--json")
    report = json.loads(done.out)
    assert (done.status, report["status"]) == (1, "fail")
    assert {case["status"] for case in report["cases"].values()} == {"fail"}
    assert (report["spec"]["head_dim"], report["recipe"]["storage"]) == (4, "float32")


def test_what_was_compared_before_the_run_ended(judge: Judge) -> None:
    report = json.loads(judge(f"{KERNELS / 'cheats.py'}:hangs", "--timeout", "0.5", "--json").out)
    assert (report["compared"], report["failed"], report["unjudged"], report["cases"]) == (0, 0, 6, {})
    report = json.loads(judge(KERNELS / "honest.py", "--json").out)
    assert (report["compared"], report["failed"], report["unjudged"], len(report["cases"])) == (6, 0, 0, 6)


@pytest.mark.parametrize(
    ("kernel", "limit", "said"),
    [
        ("hangs", ["--timeout", "0.5"], "took more than 0.5 s: --timeout allows more"),
        ("eats_memory", ["--memory", "0.4"], "MemoryError"),
    ],
)
def test_limits(kernel: str, limit: list[str], said: str, judge: Judge) -> None:
    done = judge(f"{KERNELS / 'cheats.py'}:{kernel}", *limit)
    assert done.status == 1
    assert said in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os\nkernel = lambda inputs: os._exit(3)", "fail: 0 of 6 cases compared, 0 failed; seed "),
        ("import os\nkernel = lambda inputs: os._exit(3)", " ended at "),
        ("def kernel(", "SyntaxError"),
        ("raise ValueError('no GPU')", "the kernel raised ValueError: no GPU (line 1 of kernel.py)"),
        ("x = 1", "the file has no function 'kernel'"),
        ("import time; time.sleep(9)", "took more than 1 s"),
        ("kernel = lambda spec, inputs: NotImplemented", "the kernel declined 6 of 6 cases"),
        ("kernel = lambda inputs: inputs['q'].astype(int)", "of type int64: give float64, float32"),
        ("kernel = lambda inputs: {'o': inputs['q'] + 1}", "cannot be judged"),
        ("kernel = lambda inputs: inputs['q'][0] + 1", "has shape"),
        ("kernel = lambda inputs, dout=None: inputs['q'] + 1", "does not give dq, dk, dv"),
        ("kernel = lambda spec, inputs: [1.0, 2.0]", "out is a builtins.list: give an array of a library"),
    ],
)
def test_what_is_no_kernel(code: str, says: str, here: Path, judge: Judge) -> None:
    (here / "kernel.py").write_text(code)
    done = judge("kernel.py", "--timeout", "1" if "sleep" in code else "30")
    assert done.status == 1
    assert says in " ".join(done.out.split())
