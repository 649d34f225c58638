"""Manifests: one way to write them, and every change is seen."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.errors import CheckpointError
from refdiff.oracle.golden.manifest import COLUMNS, FORMAT, index_text, manifest_text, read_manifest, sha256

CASE: dict[str, Any] = {"id": "a", "file": "a", "judged": [], "tensors": []}
REST: dict[str, Any] = {"format": FORMAT, "cases": [CASE], "λ": 0.8, "files": {}}


def write(folder: Path, files: dict[str, bytes], cases: Sequence[dict[str, Any]] = (CASE,)) -> bytes:
    """A folder of these files, with an index of the first case, and a manifest that has the hash of each."""
    files = {**files, "index.txt": index_text([CASE], files).encode()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    listed = {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in files.items()}
    text = manifest_text({**REST, "files": listed, "cases": cases}).encode()
    (folder / "manifest.json").write_bytes(text)
    return text


def test_has_its_own_hash() -> None:
    text = manifest_text(REST)
    manifest = json.loads(text)
    assert manifest_text(manifest) == text
    del manifest["sha256"]
    assert manifest == REST
    assert manifest_text(dict(reversed(REST.items()))) == text


@given(data=st.data())
def test_one_byte_of_the_manifest(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("golden")
    text = bytearray(write(folder, {"a": b"123"}))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    (folder / "manifest.json").write_bytes(text)
    try:
        _, changed = read_manifest(folder)
    except CheckpointError as error:
        assert "manifest.json: " in str(error)  # noqa: PT017
    except (KeyError, TypeError, AttributeError) as error:
        pytest.fail(f"byte {at} of {bytes(text)!r}: {error!r}")
    else:
        assert changed != []


def test_one_byte_of_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"a": b"123", "b": b"456"})
    (tmp_path / "b").write_bytes(b"457")
    assert read_manifest(tmp_path)[1] == ["b: its bytes have been changed: SHA-256 is not the manifest's"]
    (tmp_path / "b").unlink()
    assert read_manifest(tmp_path)[1] == ["b: no such file"]


def test_what_a_manifest_of_whole_files_may_lack(tmp_path: Path) -> None:
    write(tmp_path, {"a": b"123"}, [])
    assert read_manifest(tmp_path)[1] == ["manifest.json: it has no cases"]
    write(tmp_path, {"a": b"123"}, [CASE, {**CASE, "file": "c"}])
    assert read_manifest(tmp_path)[1] == ["c: manifest.json has no SHA-256 of it"]
    write(tmp_path, {"a": b"123"}, [CASE, CASE])
    assert read_manifest(tmp_path)[1] == ["index.txt: it says something else than manifest.json"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_no_manifest(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json: "):
        read_manifest(tmp_path)
    with pytest.raises(CheckpointError, match=r"manifest\.json: no such file"):
        read_manifest(tmp_path / "elsewhere")


@pytest.mark.parametrize("value", ["1e999", "-1e999", '"\\ud800"'], ids=range(3))
def test_a_manifest_with_what_this_version_never_writes(tmp_path: Path, value: str) -> None:
    (tmp_path / "manifest.json").write_text(f'{{"format": "{FORMAT}", "licence": {value}}}')
    with pytest.raises(CheckpointError, match=r"manifest\.json: "):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/a", "", "a\x1b[2J"])
def test_a_manifest_names_files_of_its_folder_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest_text({**REST, "files": {name: {"sha256": ""}}}))
    with pytest.raises(CheckpointError, match="is not a plain name of a file in this folder") as caught:
        read_manifest(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["link", "device", "pipe"])
def test_files_of_a_manifest_that_are_no_files(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "golden"
    folder.mkdir()
    write(folder, {"a": b"123", "b": b"456"})
    (folder / "b").unlink()
    (tmp_path / "secret").write_bytes(b"456")
    if kind == "pipe":
        os.mkfifo(folder / "b")
    else:
        (folder / "b").symlink_to(tmp_path / "secret" if kind == "link" else "/dev/zero")
    (change,) = read_manifest(folder)[1]
    assert "not a regular file" in change or "'b' is a link that leads out" in change
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(CheckpointError, match=r"manifest\.json: not a regular file, but a named pipe"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "rest", [{"files": 3}, {"files": {"a": 3}}, {"files": {"a": {}}}, {"cases": 3}, {"cases": [{}]}, {"cases": [3]}]
)
def test_a_manifest_that_is_whole_and_says_nothing(tmp_path: Path, rest: dict[str, Any]) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "manifest.json").write_text(manifest_text({**REST, **rest}))
    with pytest.raises(CheckpointError, match=r"manifest\.json: not what this version writes"):
        read_manifest(tmp_path)


def test_index() -> None:
    tensor = {"name": "out", "kind": "rows", "n": 6, "width": 4, **dict.fromkeys(COLUMNS, 0.1)}
    of_q = {"name": "inputs.q", "role": "input", "dtype": "bfloat16", "begin": 8, "shape": [2, 3]}
    tensors = [of_q, {**of_q, "name": "expected.out", "role": "expected"}, {**of_q, "name": "inputs.s", "shape": []}]
    case = {"id": "a", "file": "case_a", "judged": [tensor, {**tensor, "name": "dq"}], "tensors": tensors}
    head, _, rest = index_text([case], {"case_a": b"123"}).partition("\n")
    assert head == f"{FORMAT} 1 {zlib.crc32(rest.encode()):08x}"
    lines = rest.splitlines()
    assert lines[0] == f"case a case_a 3 {zlib.crc32(b'123'):08x} 2"
    assert lines[1].split() == ["out", "rows", "6", "4", *["0.10000000000000001"] * 14]
    assert lines[2].startswith("dq ")
    assert lines[3:] == ["input q bfloat16 8 2 2 3", "input s bfloat16 8 0"]
