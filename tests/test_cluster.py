"""What is said without dask.distributed; tests/cluster has a real cluster."""

from __future__ import annotations

import sys

import pytest

from refdiff.cli import main


@pytest.mark.parametrize(
    ("command", "status"), [(["generate", "--prompts-file", "prompts"], 1), (["check", "--selftest"], 2)]
)
def test_the_commands_say_so_in_one_line(
    command: list[str],
    status: int,
    tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.chdir(str(tmp_path))
    with open("prompts", "w") as file:  # noqa: PTH123, in the folder that the test is in
        file.write("ab\n")
    assert main([*command, "--dask", "tcp://127.0.0.1:1"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"refdiff {command[0]}: error: --dask needs dask.distributed")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "other"), [(["generate", "ab"], "--prompts-file"), (["check", "x.npz"], "--selftest")]
)
def test_where_there_is_nothing_to_share_out(
    command: list[str], other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--dask", "tcp://127.0.0.1:1"]) == 2
    says = f"--dask: goes with {other}; add that, or leave --dask out"
    assert capsys.readouterr().err == f"refdiff {command[0]}: error: {says}\n"


def test_processes_here_and_workers_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--selftest", "--jobs", "2", "--dask", "tcp://127.0.0.1:1"]) == 2
    assert "--jobs, --dask: got both, expected one of them; --dask has workers of its own" in capsys.readouterr().err
