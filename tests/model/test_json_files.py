"""Reading and writing the small JSON files of a checkpoint."""

from __future__ import annotations

import json
import math
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.errors import CheckpointError
from refdiff.model.json_files import read_json, write_json

HOSTILE = {
    "empty": (b"", "not valid JSON.*; the file is empty, so download or write it again$"),
    "not JSON": (b"hello", "not valid JSON.*line 1, column 1$"),
    "cut short": (b'{"a": 1, "b', "not valid JSON"),
    "two values": (b"{} {}", "not valid JSON"),
    "a list": (b"[1, 2]", "a list, but must be an object"),
    "a number": (b"3", "an integer, but must be an object"),
    "null": (b"null", "null, but must be an object"),
    "a float in disguise": (b'{"__float__": "NaN"}', "a number, but must be an object"),
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


@pytest.mark.parametrize(("inner", "outer"), [("[{}]", 98), ("{}", 99), ("1", 100)])
def test_a_hundred_levels_are_read(inner: str, outer: int, tmp_path: Path) -> None:
    for more in (0, 1):
        levels = outer + more - 1
        (tmp_path / "config.json").write_text('{"a": ' + "[" * levels + inner + "]" * levels + "}")
        if more:
            with pytest.raises(CheckpointError, match="nested too deeply; at most 100 levels are read"):
                read_json(tmp_path / "config.json")
        else:
            assert read_json(tmp_path / "config.json").keys() == {"a"}


def test_paths_may_be_strings(tmp_path: Path) -> None:
    write_json(str(tmp_path / "config.json"), {"a": 1})
    assert read_json(str(tmp_path / "config.json")) == {"a": 1}


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
    with path.open("wb") as file:
        file.truncate(5_000_000_000)
    start = time.thread_time()
    with pytest.raises(CheckpointError, match="larger than 10,000,000 bytes"):
        read_json(path)
    assert time.thread_time() - start < 1


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json(path, max_bytes=8) == {"a": 1}
    with pytest.raises(CheckpointError, match="larger than 7 bytes"):
        read_json(path, max_bytes=7)


def test_many_keys_with_one_twice_is_quick(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    keys = [f'"{index}":0' for index in range(300_000)]
    path.write_text("{" + ",".join([*keys, '"299999":1']) + "}")
    start = time.thread_time()
    with pytest.raises(CheckpointError, match="'299999' stands twice"):
        read_json(path)
    assert time.thread_time() - start < 5


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "file for folder", "loop", "null byte", "long name"])
def test_what_is_not_a_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    message = "no such file"
    if kind == "folder":
        path.mkdir()
        message = "not a regular file"
    elif kind == "fifo":
        os.mkfifo(path)
        message = "not a regular file"
    elif kind == "file for folder":
        path.write_text("{}")
        path = path / "config.json"
    elif kind == "loop":
        path.symlink_to(path)
        message = "cannot be opened"
    elif kind == "null byte":
        path = tmp_path / "a\0b"
        message = "cannot be opened"
    elif kind == "long name":
        path = tmp_path / ("x" * 5000)
        message = "cannot be opened"
    with pytest.raises(CheckpointError, match=message):
        read_json(path)


def test_a_link_to_a_file_is_followed_as_the_hub_cache_needs(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text('{"a": 1}')
    (tmp_path / "config.json").symlink_to(tmp_path / "blob")
    assert read_json(tmp_path / "config.json") == {"a": 1}


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0123eE.+-truefalsn\\u ', max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "config.json"
    path.write_bytes(content)
    try:
        outcome: object = read_json(path)
    except CheckpointError as error:
        outcome = error
    assert isinstance(outcome, dict) or str(path) in str(outcome)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text().filter("__float__".__ne__), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text().filter("__float__".__ne__), JSON, max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]) -> None:
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


def test_the_format_is_that_of_transformers(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"b": [1], "a": "日\ud800", "3": None})
    expected = b'{\n  "3": null,\n  "a": "\\u65e5\\ud800",\n  "b": [\n    1\n  ]\n}\n'
    assert (tmp_path / "config.json").read_bytes() == expected


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    write_json(path, {"a": 1})

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_whole_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    write_json(tmp_path / "config.json", {"a": 1})
    assert synced == [(tmp_path / "config.json").stat().st_size]


def test_a_folder_that_is_not_there_is_the_only_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_json(tmp_path / "none" / "config.json", {})
    assert caught.value.__context__ is None


def test_a_value_that_json_cannot_hold_touches_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "config.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_json(tmp_path / "config.json", {})
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
