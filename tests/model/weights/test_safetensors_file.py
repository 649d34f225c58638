"""The format: what the library writes is read and written, and each of its rules is enforced by name."""

from __future__ import annotations

import copy
import json
import mmap
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from refdiff import CheckpointError
from refdiff.model.weights import safetensors_file
from refdiff.model.weights.precision import STORED
from refdiff.model.weights.safetensors_file import SafetensorsFile, open_safetensors, write_safetensors
from tests.model.weights.files import ARRAY_TYPES, join, pack, stored


def put(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    return path


def opened(tmp_path: Path, content: bytes) -> SafetensorsFile:
    return open_safetensors(put(tmp_path, content))


def refused(tmp_path: Path, content: bytes) -> str:
    with pytest.raises(CheckpointError, match=r"/file\.safetensors: ") as caught:
        opened(tmp_path, content)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def header_of(fields: dict[str, Any], data: int = 0) -> bytes:
    return join(json.dumps(fields).encode(), bytes(data))


@pytest.mark.parametrize("name", ARRAY_TYPES)
def test_reads_what_the_library_writes(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    tensors = {"b": rng.standard_normal((3, 2)).astype(ARRAY_TYPES[name]), "a": np.ones(5, ARRAY_TYPES[name])}
    path = tmp_path / "file.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    file = open_safetensors(path)
    assert file.metadata == {"format": "pt"}
    assert {key: (t.dtype, t.shape, t.nbytes) for key, t in file.tensors.items()} == {
        key: (name, value.shape, value.nbytes) for key, value in tensors.items()
    }
    for key, value in tensors.items():
        view = file.view(key)
        assert view.tobytes() == value.tobytes()
        assert view.shape == value.shape
        assert not view.flags.writeable
        assert not view.flags.owndata


def test_types_are_those_of_the_library(tmp_path: Path) -> None:
    for name, bits in safetensors_file.BITS.items():
        path = put(tmp_path, header_of({"t": {"dtype": name, "shape": [8], "data_offsets": [0, bits]}}, bits))
        with safetensors.safe_open(path, "numpy") as file:
            assert file.get_slice("t").get_dtype() == name


def test_forgotten_memory_is_read_again(tmp_path: Path) -> None:
    values = np.arange(50_000.0)
    file = opened(tmp_path, pack({"x": stored(values)}))
    view = file.view("x")
    assert_array_equal(view, values)
    file.release_pages(0, len(file.memory))
    file.release_pages(5, 6)
    assert_array_equal(view, values)


# ---- files that are something else


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04rest of it" * 20, "is a pickle"),
        (b"\x80\x02}q\x00.....", "convert the model with transformers: from_pretrained(...).save_pretrained(...)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "fetch it with `git lfs pull`"),
        (b"<!DOCTYPE html><html>404</html>", "not a safetensors file"),
        *((bytes(size), f"has {size} bytes") for size in (0, 1, 7)),
        (b"\x02" + bytes(7), "the header should have 2 bytes, but the file has 8"),
        *(
            (join(b"{}" + b" " * 30, b"")[:-short], "the header should have 32 bytes, but the file")
            for short in (1, 8, 16)
        ),
        ((2**63 - 1).to_bytes(8, "little") + b"{}", "which is no length of a header; not a safetensors file"),
    ],
    ids=str,
)
def test_files_of_other_formats_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refused(tmp_path, content)


# ---- headers


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "begins with b''"), (b"[]", "begins with b'['"), (b' {"a":1}', "begins with b' '"),
        (b"{", "not valid: "), (b"{}\0\0", "not valid: "), (b"{} x", "not valid: "), (b"{'a':1}", "not valid: "),
        (b'{"a":\xff}', "not valid: "), (b'{"a":NaN}', "NaN is not a JSON number"),
        (b'{"a":1,"a":1}', "stands twice in one object"),
        (b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}', "stands twice in one object"),
        (b'{"\\ud800":1}', "surrogates not allowed"), (b'{"a":' + b"[" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' + b"9" * 5000 + b"}", "not valid: "),
        (b'{"__metadata__":1}', "__metadata__ is not a table of strings"),
        (b'{"__metadata__":{"a":1}}', "__metadata__ is not a table of strings"),
        (b'{"__metadata__":null}', "__metadata__ is not a table of strings"),
    ],
)  # fmt: skip
def test_header_that_is_none(tmp_path: Path, header: bytes, message: str) -> None:
    assert message in refused(tmp_path, join(header, b""))


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system has no such advice")
def test_whole_pages_are_let_go_and_no_others() -> None:
    class Memory:
        advice: ClassVar[list[tuple[int, int, int]]] = []

        def madvise(self, kind: int, start: int, length: int) -> None:
            self.advice.append((kind, start, length))

    page, file = mmap.PAGESIZE, SafetensorsFile("", {}, {}, Memory())  # type: ignore[arg-type]
    for begin, end in ((1, 3 * page), (page, page + 5), (2 * page, 2 * page), (7, page - 1), (page + 1, 2 * page + 1)):
        file.release_pages(begin, end)
    spans = [(page, 2 * page), (page, 5), (2 * page, 1)]
    assert Memory.advice == [(mmap.MADV_DONTNEED, start, length) for start, length in spans]


def test_sizes_are_those_that_a_file_may_have() -> None:
    assert [safetensors_file._whole(size) for size in (-1, 0, 2**63 - 1, 2**63)] == [False, True, True, False]


def test_ten_million_bytes_of_header_are_the_most_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "long.safetensors").write_bytes((10_000_001).to_bytes(8, "little"))
    os.truncate(tmp_path / "long.safetensors", 10_000_009)  # the rest is zeros, and takes no room
    with pytest.raises(CheckpointError, match="has 10,000,001 bytes, more than the 10,000,000 that are read"):
        open_safetensors(tmp_path / "long.safetensors")
    (tmp_path / "most.safetensors").write_bytes((10_000_000).to_bytes(8, "little"))
    os.truncate(tmp_path / "most.safetensors", 10_000_008)
    with pytest.raises(CheckpointError, match="the header begins with"):
        open_safetensors(tmp_path / "most.safetensors")


GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F33"}, "dtype 'F33' is not one"),
        ({"shape": [2, -3]}, "shape [2, -3] is not a list of whole numbers"),
        ({"shape": [True, 6]}, "shape [True, 6] is not a list of whole numbers"),
        ({"shape": [2**64, 0]}, "is not a list of whole numbers"),
        ({"shape": [2, 3] + [1] * 31}, "has 33 axes, expected at most 32"),
        ({"shape": [2**62, 2**62]}, "is larger than any file"),
        ({"dtype": "U8", "shape": [2, 2**62]}, "is larger than any file"),
        ({"shape": [2, 4]}, "takes 32 bytes, but data_offsets [0, 24] span 24"),
        ({"dtype": "F4", "shape": [47]}, "ends in the middle of a byte"),
        ({"data_offsets": [-24, 0]}, "are not two whole numbers"),
        ({"data_offsets": [0, 24, 24]}, "are not two whole numbers"),
        ({"data_offsets": [1, 25]}, "leaves a gap before it: it starts at byte 1"),
    ],
)
def test_tensor_that_contradicts_itself(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert opened(tmp_path, header_of({"the name": GOOD}, 24)).tensors
    text = refused(tmp_path, header_of({"the name": {**GOOD, **change}}, 24))
    assert "tensor 'the name'" in text
    assert message in text


def test_the_largest_tensor_that_a_file_may_have(tmp_path: Path) -> None:
    assert opened(tmp_path, header_of({"x": {**GOOD, "shape": [2, 3] + [1] * 30}}, 24)).tensors["x"].nbytes == 24
    largest = 2**63 - 1
    entry = {"dtype": "U8", "shape": [largest], "data_offsets": [0, largest]}
    assert "is cut short: its header describes 9,223,372,036,854,775," in refused(tmp_path, header_of({"x": entry}, 24))


@pytest.mark.parametrize("entry", [*({k: GOOD[k] for k in GOOD if k != left} for left in GOOD), None, [], 1, "F32"])
def test_entry_without_a_field(tmp_path: Path, entry: object) -> None:
    assert "tensor 'x': needs the fields" in refused(tmp_path, header_of({"x": entry}, 24))


@pytest.mark.parametrize(
    ("second", "data", "message"),
    [
        ([20, 44], 44, "tensor 'y' overlaps the one before it: it starts at byte 20 of the data, and what precedes"),
        ([0, 24], 24, "tensor 'y' overlaps the one before it"),
        (
            [28, 52],
            52,
            "tensor 'y' leaves a gap before it: it starts at byte 28 of the data, and what precedes it ends",
        ),
        ([24, 48], 47, "is cut short: its header describes"),
        ([24, 48], 49, "has bytes that belong to no tensor: its header describes"),
    ],
)
def test_tensors_that_do_not_cover_the_data(tmp_path: Path, second: list[int], data: int, message: str) -> None:
    content = header_of({"x": GOOD, "y": {**GOOD, "data_offsets": second}}, data)
    assert message in refused(tmp_path, content)


def test_long_and_hostile_names_stay_short_and_harmless(tmp_path: Path) -> None:
    name = "\x1b[2J" + "x" * 100_000
    text = refused(tmp_path, header_of({name: {**GOOD, "shape": [1] * 100_000}}, 24))
    assert len(text) < 400
    assert text.isprintable()


# ---- writing

NUMPY_TYPES = {STORED[name]: kind for name, kind in ARRAY_TYPES.items()}


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {
        "model.b": rng.standard_normal((5, 3)),
        "model.a": rng.standard_normal(7),
        "Ω": rng.standard_normal((2, 1, 2)),
        "empty": np.zeros((0, 4)),
        "scalar": np.array(1.5),
    }


@pytest.mark.parametrize("tile", [1 << 18, 4])
@pytest.mark.parametrize("dtype", NUMPY_TYPES)
def test_bytes_are_those_of_the_library(tmp_path: Path, dtype: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "TILE", tile)
    given = {name: values.astype(NUMPY_TYPES[dtype]).astype(np.float64) for name, values in arrays().items()}
    write_safetensors(tmp_path / "ours", given, dtype)
    theirs = {name: values.astype(NUMPY_TYPES[dtype]) for name, values in given.items()}
    assert (tmp_path / "ours").read_bytes() == safetensors.numpy.save(theirs, metadata={"format": "pt"})


def test_all_of_it_is_on_the_disk_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a power cut after a rename does not leave a short file under the right name."""
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    write_safetensors(tmp_path / "ours", arrays(), "float32")
    assert sizes == [(tmp_path / "ours").stat().st_size]


@pytest.mark.parametrize("name", ["fortran", "strided", "big-endian", "read-only"])
def test_any_memory_layout(tmp_path: Path, name: str) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    laid_out = {
        "fortran": np.asfortranarray(values),
        "strided": np.repeat(values, 2, axis=1)[:, ::2],
        "big-endian": values.astype(">f4"),
        "read-only": np.frombuffer(values.tobytes(), np.float32).reshape(4, 6),
    }[name]
    write_safetensors(tmp_path / "ours", {"x": laid_out}, "float32")
    assert (tmp_path / "ours").read_bytes() == safetensors.numpy.save({"x": values}, metadata={"format": "pt"})


def test_values_beyond_the_range_of_float16_are_refused(tmp_path: Path) -> None:
    big = np.array([1.0, 65520.0], np.float32)
    with pytest.raises(ValueError, match=r"model\.x has values beyond float16's range of ±65504.* bfloat16 or float32"):
        write_safetensors(tmp_path / "ours", {"model.x": big}, "float16")
    # what was infinite before is no loss
    write_safetensors(tmp_path / "ours", {"model.x": np.array([1, np.inf, np.nan, 65519.0])}, "float16")
    read = safetensors.numpy.load_file(tmp_path / "ours")["model.x"]
    assert_array_equal(read, np.array([1, np.inf, np.nan, 65504], np.float16))


# ---- any damage

SOUND = pack({name: stored(np.arange(6.0).reshape(2, 3) + i) for i, name in enumerate(("a", "b", "model.norm"))})
END = 8 + int.from_bytes(SOUND[:8], "little")
TABLE = json.loads(SOUND[8:END])
WRONG = st.sampled_from(
    [None, True, 0, 1, -1, 3, 1.5, 1e300, 2**63, 10**30, "", "x", "F16", [], [[]], [-1], [2**63], [24, 48]]
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Bits flipped, bytes cut out or put in, or one value of the header replaced, left out or under another name."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "value", "remove", "rename"]))
    at = draw(st.integers(0, len(SOUND) - 1))
    if kind == "flip":
        return SOUND[:at] + bytes([SOUND[at] ^ 1 << draw(st.integers(0, 7))]) + SOUND[at + 1 :]
    if kind == "cut":
        return SOUND[:at] + SOUND[draw(st.integers(at, len(SOUND))) :]
    if kind == "insert":
        return SOUND[:at] + draw(st.binary(min_size=1, max_size=9)) + SOUND[at:]
    table = copy.deepcopy(TABLE)
    name = draw(st.sampled_from(sorted(table)))
    place, key = draw(st.sampled_from([(table, name), *((table[name], field) for field in table[name])]))
    if kind == "value":
        place[key] = draw(WRONG)
    else:
        value = place.pop(key)
        place |= {key + draw(st.sampled_from(["x", "\x1b[2J", "\0"])): value} if kind == "rename" else {}
    return join(json.dumps(table).encode(), SOUND[END:])


@given(content=damaged())
def test_a_damaged_file_is_one_error_or_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "file.safetensors"
    path.write_bytes(content)
    try:
        file, said = open_safetensors(path), ""
    except CheckpointError as error:
        file, said = None, str(error)
    if file is None:
        assert said.startswith(f"{path}: ")
        assert len(said) < 600
        return
    with safetensors.safe_open(path, "numpy") as theirs:
        assert set(theirs.keys()) == set(file.tensors)
    for name, theirs in safetensors.numpy.load(content).items():
        ours = content[file.tensors[name].begin : file.tensors[name].end]
        assert (file.tensors[name].shape, ours) == (theirs.shape, theirs.tobytes())
