"""Places that cannot be written to."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Cli

WRITING = {
    "generate": (["generate", "-o", "{}", "Once"], "-o"),
    "prompts": (["generate", "--prompts-file", "in.txt", "-o", "{}"], "-o"),
    "attention": (["attention", "Once", "-o", "{}"], "-o"),
    "trace": (["trace", "bundled", "Once", "-o", "{}"], "-o"),
    "bench": (["bench", "--rows", "load", "--json", "{}"], "--json"),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("place", ["/dev/full", "pipe", "link"])
def test_a_device_or_a_pipe_is_refused_before_the_work(command: str, place: str, here: Path, cli: Cli) -> None:
    (here / "in.txt").write_text("Once\n")
    if place == "pipe":
        os.mkfifo("pipe")
    elif place == "link":
        Path("link").symlink_to("/dev/full")
    words, flag = WRITING[command]
    said = f"refdiff {words[0]}: error: {flag} {place}: got a device or a pipe, expected a file; name another\n"
    assert cli(*(word.format(place) for word in words)) == (2, "", said)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_the_file_of_a_standard_stream_is_not_replaced(stream: str, here: Path, environment: dict[str, str]) -> None:
    """What the shell writes after the command would go on into the old file, which has no name any more."""
    command = [sys.executable, "-m", "refdiff", "generate", "Once", "-o", f"/dev/{stream}"]
    with Path("log").open("w+b") as log:
        outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: log}
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False, **outputs)
        log.seek(0)
        said = log.read() if stream == "stderr" else done.stderr
        why = f"-o /dev/{stream}: got the file that the shell writes the output to; name another"
        assert (done.returncode, said.decode()) == (2, f"refdiff generate: error: {why}\n")
        assert os.path.samestat(os.fstat(log.fileno()), Path("log").stat())


FOLDERS = {
    "convert": (["convert", "bundled", "{}", "--to", "paper"], "OUTPUT"),
    "golden": (["golden", "export", "{}"], "VECTORS"),
    "train": (["train", "in.txt", "-o", "{}"], "-o"),
}


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    command: str, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "in.txt").write_text("Once\n")
    words, flag = FOLDERS[command]
    said = f"refdiff {words[0]}: error: {flag} in.txt/new: in.txt is a file, expected a folder; name another place\n"
    assert cli(*(word.format("in.txt/new") for word in words)) == (2, "", said)
    monkeypatch.setattr(os, "access", lambda place, mode: place != here)  # root may write everywhere
    said = f"refdiff {words[0]}: error: {flag} a/new: may not be written; name another place\n"
    assert cli(*(word.format("a/new") for word in words)) == (2, "", said)


@pytest.mark.parametrize("most", [0, 8])
@pytest.mark.parametrize("prompt", [["h"], ["--prompts-file", "in.txt", "-q"]], ids=["prompt", "prompts"])
def test_a_full_disk_names_the_file(
    prompt: list[str], most: int, reciting: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    def small() -> None:
        # as a full disk, but for the word that the system has for it
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    plain = {key: value for key, value in environment.items() if not key.startswith("COV")}  # coverage writes files too
    command = [sys.executable, "-m", "refdiff", "generate", "-m", reciting, *prompt, "-o", "out.txt"]
    (tmp_path / "in.txt").write_text("h\n")
    done = subprocess.run(command, env=plain, cwd=tmp_path, capture_output=True, check=False, preexec_fn=small)
    assert done.returncode == 1
    assert done.stderr == b"refdiff generate: error: out.txt: File too large\n"
    assert (tmp_path / "out.txt").exists() == (most > 0 and "-q" in prompt), "a new file without a line is removed"
