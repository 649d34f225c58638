"""A hub repo from the command line: downloads with progress, offline; the hub is a look-alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..hub.lookalike import Lookalike, serve
from .conftest import Run
from .test_process import TEXT


@pytest.fixture
def hub(reciting: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[Lookalike]:
    """A hub with the repo ai/reciting, which the processes of this test ask in place of the real one."""
    with serve() as server:
        server.repo("ai/reciting", {path.name: path.read_bytes() for path in reciting.iterdir()})
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            environment.pop(name, None)
        environment.update(HF_ENDPOINT=server.endpoint, HF_HOME=str(tmp_path / "home"), HF_HUB_DISABLE_XET="1")
        yield server


def test_generate_downloads_once_and_then_works_offline(hub: Lookalike, run: Run) -> None:
    done = run("generate", "-m", "ai/reciting", "h")
    assert (done.returncode, done.stdout.decode()) == (0, TEXT + "\n"), done.stderr.decode()
    assert b"%|" not in done.stderr
    asked = len(hub.requests)
    done = run("generate", "-q", "--offline", "-m", "ai/reciting", "h")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, TEXT + "\n", b"")
    assert len(hub.requests) == asked


def test_answers_of_a_repos_earlier_commit_are_refused(hub: Lookalike, run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("h\n")
    command = ("generate", "-q", "-m", "ai/reciting", "--prompts-file", "prompts.txt", "-o", "out.jsonl")
    for again in ((), (), ("--offline",)):
        done = run(*command, *again)
        assert (done.returncode, done.stderr) == (0, b"")
    repo = hub.repos["ai/reciting"]
    repo.commit({**repo.commits[repo.branches["main"]], "README.md": b"a new model"})
    done = run(*command)
    assert done.returncode == 2
    assert done.stderr.decode().endswith("made with another -m; give the same or another -o\n")


def test_the_weights_of_another_model_are_not_downloaded(hub: Lookalike, run: Run, reciting: Path) -> None:
    files = {path.name: path.read_bytes() for path in reciting.iterdir()}
    hub.repo("ai/other", {**files, "config.json": b'{"model_type": "gpt2"}'})
    for command in (("generate", "-m", "ai/other", "h"), ("convert", "ai/other", "new", "--to", "paper")):
        done = run(*command)
        assert (done.returncode, b"model_type: got 'gpt2', expected one of" in done.stderr) == (2, True)
    assert not hub.asked("model.safetensors")


def test_inspect_of_a_repo_is_that_of_its_files(hub: Lookalike, run: Run, reciting: Path) -> None:
    done = run("inspect", "ai/reciting")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines()[0] == "ai/reciting"
    here = run("inspect", reciting).stdout.decode()
    assert done.stdout.decode().splitlines()[1:] == here.splitlines()[1:]
