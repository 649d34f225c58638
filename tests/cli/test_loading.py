"""Reading ahead, threads, and what is asked of the hub."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from refdiff.cli import loading
from refdiff.cli.loading import load, read_ahead
from refdiff.errors import CheckpointError


def _args(model: Path | str, **options: Any) -> argparse.Namespace:
    usual = {"offline": False, "quiet": False, "threads": 0, "backend": "numpy", "weights": "auto", "dtype": "auto"}
    return argparse.Namespace(model=str(model), **{**usual, **options})


def test_weights_can_stay_as_they_are_stored() -> None:
    model, _ = load(_args("bundled", weights="stored"))
    assert model.params["model"]["embed_tokens"]["weight"].dtype == np.float16
    assert load(_args("bundled"))[0].params["model"]["embed_tokens"]["weight"].dtype == np.float32


def test_threads_limits_the_linear_algebra_library(tiny_checkpoint: Path) -> None:
    with threadpool_limits(None):  # restores what was before
        model, _ = load(_args(tiny_checkpoint, threads=1))
        counts = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert counts
    assert set(counts) == {1}
    assert model.kernels.threads == 1


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_dtype(dtype: str, tiny_checkpoint: Path) -> None:
    model, _ = load(_args(tiny_checkpoint, dtype=dtype))
    assert model.dtype == dtype


@pytest.mark.parametrize("quiet", [False, True])
def test_the_hub_is_asked_once_for_everything(
    quiet: bool, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    from refdiff import hub

    real = hub.snapshot

    def snapshot(path: Any, **options: Any) -> Path:
        if str(path) != "someone/somemodel":
            return real(path, **options)
        calls.append((path, options))
        return tiny_checkpoint

    monkeypatch.setattr(hub, "snapshot", snapshot)
    load(_args("someone/somemodel", offline=True, quiet=quiet))
    ((_, options),) = calls
    assert options["local_files_only"] is True
    assert options["progress"] is not quiet
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(options["files"])


@pytest.mark.parametrize("target", [None, "/dev/zero"])
def test_nothing_but_files_of_the_folder_is_read_ahead(target: str | None, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    os.mkfifo(path) if target is None else path.symlink_to(target)
    with pytest.raises(CheckpointError, match=r"not a regular file|leads out"):
        read_ahead([path])


def test_files_that_are_not_in_memory_are_read_with_a_progress_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for path in files:
        path.write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(loading, "_in_memory", lambda path: path.name == "a")
    read_ahead(files)
    err = capsys.readouterr().err
    assert "reading weights" in err
    assert "/3.00M" in err  # one of the two files
    monkeypatch.setattr(loading, "_in_memory", lambda path: True)
    read_ahead(files)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="Linux only")
@pytest.mark.parametrize(("code", "expected"), [(errno.EAGAIN, False), (errno.EOPNOTSUPP, True), (0, True)])
def test_whether_a_file_is_in_memory(
    code: int, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 10_000)

    def preadv(*_: Any) -> int:
        if code:
            raise OSError(code, os.strerror(code))
        return 1

    monkeypatch.setattr(os, "preadv", preadv)
    assert loading._in_memory(path) is expected


def test_a_system_that_cannot_tell_says_it_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    assert loading._in_memory(tmp_path / "any")
