"""The files of a checkpoint: what is read, what is refused, and how they are written."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import refdiff
from refdiff.checkpoint_files import CONFIG_FILES, TOKENIZER_FILES
from refdiff.errors import CheckpointError
from refdiff.files import (
    check_name,
    copy_file,
    lock,
    open_file,
    read_bytes,
    read_json,
    read_text,
    write_atomically,
    write_json,
)  # fmt: skip
from refdiff.generation.tokenizer.config import read_tokenizer_config
from refdiff.hub import snapshot
from tests.model.models import small_model

HOSTILE = {
    "empty": (b"", "not valid JSON.*; the file is empty, so download or write it again$"),
    "not JSON": (b"hello", "not valid JSON.*line 1, column 1$"),
    "cut short": (b'{"a": 1, "b', "not valid JSON"),
    "two values": (b"{} {}", "not valid JSON"),
    "a list": (b"[1, 2]", "a list, expected an object"),
    "a number": (b"3", "an integer, expected an object"),
    "null": (b"null", "null, expected an object"),
    "a float in disguise": (b'{"__float__": "NaN"}', "a number, expected an object"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8 text .byte 7"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8 text"),
    "nested past Python's limit": (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
    "nested lists": (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", "nested too deeply"),
    "nested objects": (b'{"a":' * 500 + b"1" + b"}" * 500, "nested too deeply"),
    "the same key twice": (b'{"hidden_size": 1, "hidden_size": 2}', "the key hidden_size stands twice"),
    "the same key twice inside": (b'{"a": [{"b": 1, "b": 1}]}', "the key b stands twice"),
    "an endless integer": (b'{"a": ' + b"9" * 5000 + b"}", "more than 4300 digits"),
    "a git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "; this is a git-lfs pointer, .*: run `git lfs pull`$",
    ),
    "a byte order mark": (
        b"\xef\xbb\xbf{}",
        "; the file begins with a byte order mark: write it again as UTF-8 without one$",
    ),
    "a web page": (b"<!DOCTYPE html><title>Sign in</title>", "; this looks like a web page .*: download it again$"),
    "a pickle": (b"\x80\x02}q\x00.", "not UTF-8"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content_gives_one_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "config.json"
    path.write_bytes(content)
    start = time.thread_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert time.thread_time() - start < 2


def test_a_refused_file_is_not_left_open(tmp_path: Path) -> None:
    before = os.dup(0)  # the lowest free number
    os.close(before)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_json(tmp_path)
    after = os.dup(0)
    os.close(after)
    assert after == before


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 1}')
    assert read_text(path, max_bytes=8) == '{"a": 1}'
    with pytest.raises(CheckpointError, match="larger than 7 bytes"):
        read_text(path, max_bytes=7)
    os.truncate(path, 5_000_000_000)
    start = time.thread_time()
    with pytest.raises(CheckpointError, match="larger than 10,000,000 bytes"):
        read_json(path)
    assert time.thread_time() - start < 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux only")
def test_a_file_that_says_it_is_empty_is_bounded_too() -> None:
    assert read_bytes("/proc/self/maps", max_bytes=10**7)
    with pytest.raises(CheckpointError, match="larger than 100 bytes"):
        read_bytes("/proc/self/maps", max_bytes=100)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text().filter("__float__".__ne__), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text().filter("__float__".__ne__), JSON, max_size=5))
def test_json_that_was_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("round") / "config.json"
    write_json(path, value)
    assert read_json(path) == value


def test_special_floats_are_tagged_as_transformers_tags_them(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, {"a": math.inf, "b": [-math.inf, {"c": math.nan}]})
    assert json.loads(path.read_text()) == {
        "a": {"__float__": "Infinity"},
        "b": [{"__float__": "-Infinity"}, {"c": {"__float__": "NaN"}}],
    }
    value = read_json(path)
    assert value["a"] == math.inf
    assert value["b"][0] == -math.inf
    assert math.isnan(value["b"][1]["c"])
    path.write_text('{"a": {"__float__": "other"}, "b": {"__float__": 3}}')
    assert read_json(path) == {"a": {"__float__": "other"}, "b": {"__float__": 3}}


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "config.json", []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
        write_json(str(path), {"a": 1})
    assert synced == [path.stat().st_size], "whole before it is synced"

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left") as caught:
        write_json(path, {"a": 2})
    assert caught.value.filename == str(path)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(str(path)) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="other permissions there")
def test_a_replaced_file_keeps_its_permissions_and_its_links(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    file.chmod(0o600)
    link.symlink_to("file")
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"new", 0o600)
    write_json(link, {})
    assert not link.is_symlink(), "a checkpoint's file in Hugging Face's cache is a link to a shared blob"
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../model.safetensors", "sub/model.safetensors", "/etc/passwd", "..\\model.safetensors",
        "C:model.safetensors", "model.safetensors\0", "./model.safetensors", "model.safetensors/",
    ],
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="is not a plain name of a file in this folder"):
        check_name(tmp_path, name)


@pytest.mark.parametrize("name", [*CONFIG_FILES, *TOKENIZER_FILES, "model-00001-of-00002.safetensors"])
def test_links_out_of_a_local_folder_are_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("{}")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / name).symlink_to("../secret")
    with pytest.raises(CheckpointError, match=f"'{name}' is a link that leads out of the folder"):
        snapshot(folder)
    with pytest.raises(CheckpointError, match="leads out"):
        refdiff.DiffLlamaConfig.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="leads out"):
        refdiff.Tokenizer.from_pretrained(folder)


def test_further_chat_templates_are_looked_at_too(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "checkpoint"
    templates = folder / "additional_chat_templates"
    for path in (outside, templates):
        path.mkdir(parents=True)
    (templates / "rag.jinja").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"'rag\.jinja' is a link that leads out"):
        snapshot(folder)
    (templates / "rag.jinja").unlink()
    (templates / "rag.jinja").write_text("{{ x }}")
    assert snapshot(folder) == folder
    (templates / "rag.jinja").unlink()
    templates.rmdir()
    templates.symlink_to(outside)  # the names outside are not looked at
    with pytest.raises(CheckpointError, match="'additional_chat_templates' is a link that leads out"):
        snapshot(folder)


def test_a_folder_of_very_many_templates_is_not_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    for number in range(3):
        (tmp_path / "additional_chat_templates" / f"{number}.jinja").touch()
    assert snapshot(tmp_path) == tmp_path
    monkeypatch.setattr("refdiff.checkpoint_files.MAX_FILES", 2)
    with pytest.raises(CheckpointError, match=r"has more than 2 files additional_chat_templates/\*, expected fewer"):
        snapshot(tmp_path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


REFUSED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "missing": ("no such file", lambda path: None),
    "under a file": ("no such file", lambda path: path.parent.touch()),
    "pipe": ("not a regular file", os.mkfifo),
    "folder": ("not a regular file", Path.mkdir),
    "socket": ("not a regular file", _socket),
    "/dev/zero": ("not a regular file", lambda path: None),
    "link": ("not a regular file|leads out of the folder", lambda path: path.symlink_to("/dev/zero")),
    "loop": ("cannot be opened", lambda path: path.symlink_to(path)),
    "null\0byte": ("cannot be opened", lambda path: None),
    "x" * 5000: ("cannot be opened", lambda path: None),
}


@pytest.mark.parametrize("kind", REFUSED, ids=range(len(REFUSED)))
def test_a_path_that_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "under" / kind if kind == "under a file" else tmp_path / kind
    message, make = REFUSED[kind]
    make(path)
    start = time.monotonic()
    for read in (open_file, partial(read_bytes, max_bytes=9), partial(read_text, max_bytes=9), read_json):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(path)
        assert path.name[:4] in str(caught.value)
    assert time.monotonic() - start < 20  # none waits for a writer


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "dangling"])
def test_a_file_that_may_be_missing_is_not_ignored_where_it_cannot_be_read(
    kind: str, name: str, tmp_path: Path
) -> None:
    small_model().save_pretrained(tmp_path)
    path = tmp_path / name
    path.unlink(missing_ok=True)
    message, make = REFUSED.get(kind, ("no such file", lambda path: path.symlink_to("none")))
    make(path)
    with pytest.raises(CheckpointError, match=rf"{name}: {message}"):
        if name == "generation_config.json":
            refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path)
        else:
            read_tokenizer_config(tmp_path)


def test_a_file_that_becomes_a_pipe_between_check_and_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real_open = tmp_path / "file", os.open
    path.write_bytes(b"x")

    def swapped(name: object, flags: int) -> int:
        assert flags & os.O_NONBLOCK  # or else opening the pipe waits for ever
        path.unlink()
        os.mkfifo(path)
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(CheckpointError, match="not a regular file, but a named pipe"):
        open_file(path)


def test_a_file_of_a_folder_stays_in_it_and_one_that_the_user_named_need_not(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "vocab.json").symlink_to(tmp_path / "secret")
    assert read_text(folder / "vocab.json", max_bytes=9) == "secret"
    for read in (partial(read_bytes, max_bytes=9), partial(copy_file, target=tmp_path / "copy"), open_file):
        with pytest.raises(CheckpointError, match=r"'vocab\.json' is a link that leads out"):
            read(folder / "vocab.json", folder=folder)
    assert not (tmp_path / "copy").exists()


def test_files_of_the_hub_cache_are_links_to_its_blobs(tmp_path: Path) -> None:
    repo = tmp_path / "models--a--b"
    folder = repo / "snapshots" / "0123"
    for path in (folder, repo / "blobs"):
        path.mkdir(parents=True)
    (repo / "blobs" / "ab12").write_text("{}")
    (folder / "config.json").symlink_to("../../blobs/ab12")
    assert read_json(folder / "config.json") == {}
    copy_file(folder / "config.json", tmp_path / "copy", folder=folder)
    assert (tmp_path / "copy").read_text() == "{}"
    (repo / "blobs" / "ab12").unlink()
    (repo / "blobs").rmdir()
    (tmp_path / "ab12").write_text("secret")
    (repo / "blobs").symlink_to(tmp_path)  # a look-alike whose blobs are somebody's files
    with pytest.raises(CheckpointError, match="leads out"):
        read_json(folder / "config.json")


@pytest.mark.parametrize("target", ["/dev/full", "/dev/zero", "folder"])
def test_nothing_but_a_file_is_replaced(target: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / target
    with pytest.raises(OSError, match=r"not a regular file, but a (device|folder); name another file") as caught:
        write_atomically(path, b"x")
    assert caught.value.filename == str(path)
    assert path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no flock there")
def test_a_lock_ends_with_the_file(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as one, (tmp_path / "x").open("wb") as other:
        assert lock(one, wait=False)
        assert not lock(other, wait=False)
        one.close()
        assert lock(other, wait=True)


@pytest.mark.parametrize("save", ["model", "config", "tokenizer"])
def test_a_folder_to_write_to_has_a_name(save: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
    to_save: Any = {"model": model, "config": model.config, "tokenizer": refdiff.Tokenizer.from_pretrained("bundled")}
    with pytest.raises(ValueError, match="directory: got an empty name, expected that of a folder"):
        to_save[save].save_pretrained("")
    with pytest.raises(TypeError, match="directory: got None, expected the name of a folder"):
        to_save[save].save_pretrained(None)
    assert not list(tmp_path.iterdir())
