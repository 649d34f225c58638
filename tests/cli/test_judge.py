"""`refdiff judge`: a submitted file → report and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refdiff.cli import main

Capture = pytest.CaptureFixture[str]
KERNELS = Path(__file__).parents[1] / "oracle" / "judge" / "kernels"
SMALL = ["--set", "query_heads=4", "--set", "key_heads=2", "--set", "head_dim=4", "--profile", "natural"]


def test_a_pass(capsys: Capture) -> None:
    assert main(["judge", str(KERNELS / "honest.py"), *SMALL, "--size", "2x5x7", "--seed", "3"]) == 0
    assert capsys.readouterr().out.startswith(
        "pass: 7 of 7 cases compared, 0 failed; seed 3\nno gradients, which take dout=None\n"
    )


def test_a_fail(capsys: Capture) -> None:
    """What the kernel prints is in no report."""
    assert main(["judge", f"{KERNELS / 'cheats.py'}:prints_a_report", *SMALL, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == "fail"
    assert {case["status"] for case in report["cases"].values()} == {"fail"}
    assert (report["spec"]["head_dim"], report["recipe"]["storage"]) == (4, "float32")


def test_limits(capsys: Capture) -> None:
    assert main(["judge", f"{KERNELS / 'cheats.py'}:hangs", *SMALL, "--timeout", "0.5"]) == 1
    assert "took more than 0.5 s: --timeout allows more" in capsys.readouterr().out
    assert main(["judge", f"{KERNELS / 'cheats.py'}:eats_memory", *SMALL, "--memory", "0.4"]) == 1
    assert "MemoryError" in capsys.readouterr().out


def test_a_crash_ends_the_run(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "kernel.py").write_text("import os\nkernel = lambda inputs: os._exit(3)")
    assert main(["judge", str(tmp_path / "kernel.py"), *SMALL]) == 1
    first, _, reason, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("fail: 0 of 6 cases compared, 0 failed; seed ")
    assert reason.startswith("ended at ")


@pytest.mark.parametrize(
    ("code", "says"),
    [
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
def test_what_is_no_kernel(code: str, says: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "kernel.py").write_text(code)
    assert main(["judge", str(tmp_path / "kernel.py"), *SMALL, "--timeout", "1" if "sleep" in code else "30"]) == 1
    assert says in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["absent.py"], "absent.py: no such file"),
        (["kernel.py:two words"], "KERNEL: got 'kernel.py:two words', expected FILE.py or FILE.py:FUNCTION"),
        (["absent.py", "--spec", "hf"], "--spec: got 'hf', expected hf_diffllama"),
        (["absent.py", "--recipe", "int8"], "--recipe int8: no recipe is called 'int8'"),
    ],
)
def test_usage(flags: list[str], says: str, capsys: Capture) -> None:
    assert main(["judge", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"refdiff judge: error: {says}")


def test_a_size_that_is_none(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["judge", "kernel.py", "--size", "2x0x3"])
    assert "--size: got '2x0x3', expected batch x queries x keys, such as 1x512x512" in capsys.readouterr().err
