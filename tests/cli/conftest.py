"""A checkpoint that recites a known text, and the command, in this process and as one of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import refdiff
from refdiff.cli import main
from refdiff.cli.transcript import Transcript

from ..conftest import write_tokenizer


class Done(NamedTuple):
    """What a command has written, and its exit status."""

    status: int
    out: str
    err: str


Cli = Callable[..., Done]
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `refdiff ARGUMENTS` in this process."""

    def cli(*arguments: object) -> Done:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        return Done(status, *capsys.readouterr())

    return cli


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def copy(folder: Path, tmp_path: Path, file: str, **fields: Any) -> Path:
    """A copy of a checkpoint, with other fields in one of its files of JSON."""
    copied = shutil.copytree(folder, tmp_path / "model")
    there = json.loads((copied / file).read_text()) if (copied / file).exists() else {}
    (copied / file).write_text(json.dumps({**there, **fields}))
    return copied


def end_texts(patch: pytest.MonkeyPatch, tokens: int, *errors: BaseException) -> None:
    """End each text by the next error, after so many tokens."""
    put, left = Transcript.put, list(errors)

    def ends(self: Transcript, ids: Any) -> None:
        put(self, ids)
        if left and len(self.ids) == tokens:
            raise left.pop(0)

    patch.setattr(Transcript, "put", ends)


@pytest.fixture(scope="session")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says "éあ😀!" after "h", then </s>, then "h" again, one byte a token.

    Its layers add nothing, and its output matrix has for each token the embedding of the one before it.
    """
    folder = tmp_path_factory.mktemp("reciting")
    vocab_size = write_tokenizer(folder)
    tokenizer = refdiff.Tokenizer.from_pretrained(folder)
    config = refdiff.DiffLlamaConfig(
        vocab_size=vocab_size,
        hidden_size=vocab_size,
        intermediate_size=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=100_000,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = refdiff.DiffLlamaForCausalLM.from_config(config, seed=3)
    for layer in model.params["model"]["layers"]:
        layer["self_attn"]["o_proj"]["weight"] = np.zeros((vocab_size, 8), dtype=np.float32)
        layer["mlp"]["down_proj"]["weight"] = np.zeros((vocab_size, 4), dtype=np.float32)
    model.params["model"]["embed_tokens"]["weight"] = np.eye(vocab_size, dtype=np.float32)
    following = np.full(vocab_size, 1)
    cycle = [*tokenizer.encode("héあ😀!", add_special_tokens=False), 1]
    following[cycle] = [*cycle[1:], cycle[0]]
    head = np.zeros((vocab_size, vocab_size), dtype=np.float32)
    head[following, np.arange(vocab_size)] = 1
    model.params["lm_head"]["weight"] = head
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def environment() -> dict[str, str]:
    """An environment in which a process runs the refdiff under test, wherever it is started."""
    tree = str(Path(refdiff.__file__).parents[1])
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return {**inherited, "PYTHONPATH": tree, "COLUMNS": "80", "PYTHONWARNINGS": "default"}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run `refdiff ARGUMENTS` to its end as a process of its own, in an empty folder."""

    def run(*arguments: str | Path, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "refdiff", *map(str, arguments)]
        return subprocess.run(
            command, input=stdin, capture_output=True, env=environment, cwd=tmp_path, timeout=60, check=False, **options
        )

    return run


def in_terminal(
    environment: dict[str, str],
    cwd: Path,
    *arguments: str | Path,
    program: Sequence[str] = ("-m", "refdiff"),
    typed: bytes | None = None,
) -> tuple[int, str]:
    """Run with standard error on a terminal 80 columns wide; its exit status and what the terminal got.

    What is `typed` is read from the terminal too, a line at each prompt, and then standard output is on it.
    """
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdin=subprocess.DEVNULL if typed is None else theirs,
        stdout=subprocess.DEVNULL if typed is None else theirs,
        stderr=theirs,
        env=environment,
        cwd=cwd,
    )
    os.close(theirs)
    lines = re.findall(rb"[^\r]*\r|.+", typed or b"")
    seen, since = b"", b""
    try:
        while piece := os.read(ours, 10_000):
            seen, since = seen + piece, since + piece
            if lines and b"> " in since:
                since = b""
                os.write(ours, lines.pop(0))
    except OSError:  # Linux's way to say that the other side is closed
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=30), seen.decode()
