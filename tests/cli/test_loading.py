"""The model, its threads and type, what the hub is asked for, and where the prompt stands."""

from __future__ import annotations

import argparse
import errno
import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import refdiff
from refdiff import hub
from refdiff.cli.flags import MAX_PROMPT, UsageError
from refdiff.cli.loading import check_prompt, fetch, find_checkpoint, load, read_prompt, refuse_other_heads
from refdiff.cli.parser import build_parser


def _args(model: Path | str, **options: Any) -> argparse.Namespace:
    usual = {"offline": False, "quiet": False, "threads": 0, "backend": "numpy", "weights": "auto", "dtype": "auto"}
    usual["no_mmap"] = False
    return argparse.Namespace(model=str(model), **{**usual, **options})


def test_how_weights_are_kept(tiny_checkpoint: Path) -> None:
    for how, dtype in (("stored", "float16"), ("auto", "float32")):
        model, _ = load(_args("bundled", weights=how))
        assert model.params["model"]["embed_tokens"]["weight"].dtype == np.dtype(dtype)
    for dtype in ("float32", "float64", "bfloat16"):
        assert load(_args(tiny_checkpoint, dtype=dtype))[0].dtype == dtype


def test_threads_limits_the_linear_algebra_library(tiny_checkpoint: Path) -> None:
    with threadpool_limits(None):  # restores what was before
        model, _ = load(_args(tiny_checkpoint, threads=1))
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
    assert model.backend.kernels.threads == 1


def test_the_hub_is_asked_once_for_everything(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot", snapshot := Mock(return_value=tiny_checkpoint))
    assert fetch("someone/somemodel", _args("", offline=True), also=["more"]) == tiny_checkpoint
    (((named,), options),) = snapshot.call_args_list
    assert (named, options["local_files_only"], options["progress"]) == ("someone/somemodel", True, True)
    assert {"config.json", "model.safetensors", "tokenizer.json", "more"} <= set(options["files"])


def _parsed(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(["generate", *words])


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(raw: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))

    return give


def test_where_the_prompt_stands(tmp_path: Path, stdin: Any) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffé \r\n\r\n".encode())
    for words, raw, expected in (
        ([" a "], b"", " a "),
        (["--prompt", "c"], b"", "c"),
        (["-f", str(file)], b"ignored", "é \r\n"),  # one newline goes, and a byte-order mark
        (["-"], "日\n".encode(), "日"),
        (["-f", "-"], "日\n".encode(), "日"),
        ([], "日\n".encode(), "日"),
        (["Say"], "日\n".encode(), "Say\n日"),
        (["-p", "Say"], "日\n".encode(), "Say\n日"),
        (["-p", "-"], "日\n".encode(), "日"),
    ):
        stdin(raw)
        check_prompt(_parsed(*words))
        assert read_prompt(_parsed(*words)) == expected


def test_what_is_appended_to_a_prompt_is_said(stdin: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stdin("日本\n".encode())
    assert read_prompt(_parsed("-q", "Say")) == "Say\n日本"
    assert capsys.readouterr().err == "refdiff: standard input is appended to the prompt; < /dev/null leaves it out\n"
    stdin(b"")
    assert read_prompt(_parsed("Say")) == "Say"
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="not on this system")
def test_a_prompt_of_at_most_ten_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"a" * MAX_PROMPT)
    assert read_prompt(_parsed("-f", str(file))) == "a" * MAX_PROMPT
    with pytest.raises(UsageError, match="/dev/zero: longer than 10,000,000 bytes"):
        read_prompt(_parsed("-f", "/dev/zero"))
    with Path("/dev/zero").open() as endless:
        monkeypatch.setattr("sys.stdin", endless)
        for words in (["-"], [], ["Say"], ["-f", "-"]):
            with pytest.raises(UsageError, match="standard input: longer than 10,000,000 bytes, the most that a"):
                read_prompt(_parsed(*words))


def test_no_prompt_and_too_many(stdin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(b"ab\xff")
    with pytest.raises(UsageError, match="standard input: not UTF-8 at byte 2"):
        read_prompt(_parsed("-"))
    with pytest.raises(UsageError, match="PROMPT and -f and --lines: got 3 prompts, expected one; leave one out"):
        check_prompt(_parsed("a", "-f", "b"), {"--lines": "c"})
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match='PROMPT: got none, expected one; give it in quotes, "Once upon a time"'):
        check_prompt(_parsed())


def test_a_terminal_that_may_not_be_read_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False, buffer=SimpleNamespace(read=refused)))
    assert read_prompt(_parsed("a")) == "a"
    with pytest.raises(UsageError, match="PROMPT: got none"):
        read_prompt(_parsed())


def test_the_last_checkpoint_of_a_run_is_found_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("step-000002", "step-000010", "step-000011-unusable", "corpus"):
        (tmp_path / name).mkdir()
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / "step-000010")
    assert capsys.readouterr().err == f"refdiff: {tmp_path}: a training run; using its last checkpoint, step-000010\n"
    assert find_checkpoint(str(tmp_path), quiet=True) == str(tmp_path / "step-000010")
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match=r"corpus: not a checkpoint: it is empty; name the folder of a model"):
        find_checkpoint(str(tmp_path / "corpus"))


def test_the_folder_of_a_run_is_its_last_checkpoint_in_python_too(reciting: Path, tmp_path: Path) -> None:
    shutil.copytree(reciting, tmp_path / "step-000002")
    (tmp_path / "step-000001").mkdir()
    config = refdiff.DiffLlamaConfig.from_pretrained(tmp_path)
    assert config == refdiff.DiffLlamaConfig.from_pretrained(reciting)
    tokenizer = refdiff.Tokenizer.from_pretrained(tmp_path)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path)
    assert tokenizer.decode(model.generate([tokenizer.encode("h")])[0], skip_special_tokens=True) == "héあ😀!"


def test_a_checkpoint_that_is_linked_from_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "step-000001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(refdiff.CheckpointError, match="'step-000001' is a link that leads out of the folder"):
        refdiff.DiffLlamaConfig.from_pretrained(tmp_path / "run")


def test_a_checkpoint_with_another_head_is_refused(tmp_path: Path) -> None:
    refdiff.DiffLlamaConfig(architectures=["DiffLlamaForQuestionAnswering"]).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="m: a DiffLlamaForQuestionAnswering, which has no language model's head"):
        refuse_other_heads("m", tmp_path)
