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
