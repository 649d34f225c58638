"""Manifests: every change is seen, and hostile ones are refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.errors import CheckpointError
from refdiff.oracle.golden.writing import FORMAT, index_text, manifest_text, read_manifest, sha256

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


WRONG = [f'{{"format": "{FORMAT}", "licence": {value}}}'.encode() for value in ("1e999", "-1e999", '"\\ud800"')]
"""What this version never writes."""


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, *WRONG], ids=range(8))
def test_no_manifest(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json: "):
        read_manifest(tmp_path)
    with pytest.raises(CheckpointError, match=r"manifest\.json: no such file"):
        read_manifest(tmp_path / "elsewhere")


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
