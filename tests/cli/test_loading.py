"""The model and its threads, and where the prompt stands."""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import refdiff
from refdiff.bench.sizes import checkpoint
from refdiff.cli.flags import MAX_PROMPT, UsageError
from refdiff.cli.loading import check_prompt, find_checkpoint, load, read_prompt, refuse_other_heads
from refdiff.cli.parser import build_parser

from .conftest import Cli


def _args(model: Path | str, **options: Any) -> argparse.Namespace:
    usual = {"offline": False, "quiet": False, "threads": 0, "backend": "numpy", "weights": "auto", "dtype": "auto"}
    usual["no_mmap"] = False
    return argparse.Namespace(model=str(model), **{**usual, **options})


def test_threads_limits_the_linear_algebra_library(tiny_checkpoint: Path) -> None:
    with threadpool_limits(None):  # restores what was before
        model, _ = load(_args(tiny_checkpoint, threads=1))
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
    assert model.backend.kernels.threads == 1


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


@pytest.mark.parametrize(
    ("words", "status"),
    [("generate -m MODEL -", 1), ("attention -m MODEL - -o a.npz", 1), ("trace MODEL - -o t.npz", 2)],
)
@pytest.mark.parametrize(
    ("letters", "said"),
    [(100_000, r"got [\d,]+ tokens in its first 81,920 characters"), (6_000, "got 6,00[01] tokens")],
)
def test_a_prompt_far_beyond_the_context_is_refused(
    words: str, status: int, letters: int, said: str, tiny_checkpoint: Path, stdin: Any, here: Path, cli: Cli
) -> None:
    stdin(b"h" * letters)
    found = cli(*(str(tiny_checkpoint) if word == "MODEL" else word for word in words.split()))
    assert found.status == status
    assert re.search(f"prompt: {said}, expected at most 5,120, 10 times the context", found.err)


def test_no_prompt_and_too_many(stdin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(b"ab\xff")
    with pytest.raises(UsageError, match="standard input: not UTF-8 at byte 2"):
        read_prompt(_parsed("-"))
    with pytest.raises(UsageError, match="PROMPT and -f and --lines: got 3 prompts, expected one; leave one out"):
        check_prompt(_parsed("a", "-f", "b"), {"--lines": "c"})
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match='PROMPT: got none, expected one; give it in quotes, "Once upon a time"'):
        check_prompt(_parsed())


def test_the_last_checkpoint_of_a_run_is_found_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("step-000002", "step-000010", "step-000011-unusable", "step-12", "corpus"):
        (tmp_path / name).mkdir()
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / "step-000010")
    assert capsys.readouterr().err == f"refdiff: {tmp_path}: a training run; using its last checkpoint, step-000010\n"
    assert find_checkpoint(str(tmp_path), quiet=True) == str(tmp_path / "step-000010")
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match=r"corpus: not a checkpoint: it is empty; name the folder of a model"):
        find_checkpoint(str(tmp_path / "corpus"))


def test_a_checkpoint_that_is_linked_from_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "step-000001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(refdiff.CheckpointError, match="'step-000001' is a link that leads out of the folder"):
        refdiff.DiffLlamaConfig.from_pretrained(tmp_path / "run")


def test_a_checkpoint_with_another_head_is_refused(tmp_path: Path) -> None:
    refdiff.DiffLlamaConfig(architectures=["LlamaForQuestionAnswering"], variant="plain").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"m: a DiffLlamaForQuestionAnswering, which .* refdiff\.DiffLlamaForQuestion"):
        refuse_other_heads("m", tmp_path)


def test_bundled_is_the_packages_model_beside_a_folder_of_that_name(reciting: Path, here: Path, cli: Cli) -> None:
    shutil.copytree(reciting, here / "bundled")
    assert json.loads(cli("inspect", "bundled", "--json").out)["config"]["vocab_size"] == 2048
    assert refdiff.DiffLlamaConfig.from_pretrained("bundled").vocab_size == 2048
    for folder in ("./bundled", here / "bundled"):
        assert cli("generate", "-q", "-m", folder, "h").out == "éあ😀!\n"
    for path in (Path("bundled"), "./bundled"):
        assert refdiff.DiffLlamaForCausalLM.from_pretrained(path).num_parameters() < 1_000_000
    with checkpoint(None, str(Path("bundled"))) as found:
        assert found == str(here / "bundled")


def test_a_file_that_may_not_be_read_is_status_2_with_a_fix(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "secret")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    fix = "secret: Permission denied; change its permissions, or name another"
    assert cli("generate", "-f", "secret") == (2, "", f"refdiff generate: error: -f {fix}\n")
    monkeypatch.setattr("refdiff.cli.generate.read_prompt", refuse)
    assert cli("generate", "hi") == (2, "", f"refdiff generate: error: {fix}\n")
