"""Arrays of every type: of any library, and to a file and back. tests/parity has the other libraries themselves."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import array_api_strict
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from refdiff.errors import CheckpointError
from refdiff.oracle.inputs.arrays import any_array, read_arrays, write_arrays
from tests.layers.inputs import says
from tests.oracle.arrays import DTYPES, LAYOUTS, VIEWS, numbers, same_bits


@pytest.mark.parametrize("layout", VIEWS)
def test_round_trip(tmp_path: Path, layout: str) -> None:
    arrays = {dtype: np.asarray(VIEWS[layout](numbers(dtype))) for dtype in DTYPES}
    write_arrays(tmp_path / "a.safetensors", arrays, {"note": "λ"})
    read, metadata = read_arrays(tmp_path / "a.safetensors")
    assert metadata == {"note": "λ"}
    assert read.keys() == arrays.keys()
    for name, x in arrays.items():
        assert same_bits(read[name], x)
        assert not read[name].flags.writeable
        assert x.size == 0 or read[name].ctypes.data % x.itemsize == 0


def test_the_library_reads_and_writes_the_same(tmp_path: Path) -> None:
    arrays = {dtype: numbers(dtype) for dtype in DTYPES}
    for name in "ab":
        write_arrays(tmp_path / name, dict(sorted(arrays.items(), reverse=name == "b")), {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    of_numpy = {name: x for name, x in arrays.items() if name != "bfloat16"}
    with safe_open(tmp_path / "a", "numpy") as file:
        assert all(same_bits(file.get_tensor(name), x) for name, x in of_numpy.items())
    save_file(of_numpy, tmp_path / "c.safetensors")
    np.savez(tmp_path / "c.npz", **arrays)
    for file, saved in (("c.safetensors", of_numpy), ("c.npz", arrays)):
        read, metadata = read_arrays(str(tmp_path / file))
        assert metadata == {}
        assert all(same_bits(read[name], x) for name, x in saved.items())


def test_big_endian_numbers_are_byte_swapped(tmp_path: Path) -> None:
    x = np.array([1.5, -2.0], ">f4")
    write_arrays(tmp_path / "a", {"x": x}, {})
    np.savez(tmp_path / "a.npz", x=x)
    for file in ("a", "a.npz"):
        read = read_arrays(tmp_path / file)[0]["x"]
        assert (read.tolist(), str(read.dtype)) == ([1.5, -2.0], "float32")


def test_types_that_the_format_has_not(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^x: safetensors has no type for complex128; it has bool, uint8"):
        write_arrays(tmp_path / "a", {"x": np.ones(2, complex)}, {})
    text = json.dumps({"x": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "b").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(CheckpointError, match=r"b: x: got type C64, expected BOOL, U8"):
        read_arrays(tmp_path / "b")


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match=r"a\.npz: cannot be read: not a zip archive of arrays; write"):
        read_arrays(tmp_path / "a.npz")
    with says(CheckpointError, f"{tmp_path / 'b.npz'}: no such file"):
        read_arrays(tmp_path / "b.npz")
    with pytest.raises(CheckpointError, match=r"c\.safetensors: no such file"):
        read_arrays(tmp_path / "c.safetensors")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_a_limit_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive, archive.open("x.npy", "w") as member:
        np.save(member, np.zeros(3))
    with pytest.raises(CheckpointError, match=r"a\.npz: cannot be read: got another zip method than stored"):
        read_arrays(tmp_path / "a.npz")


def test_an_archive_of_zeros_is_refused_before_it_is_unzipped(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(9_000_000), y=np.zeros(4_000_000))
    assert path.stat().st_size < 200_000
    with says(
        CheckpointError,
        f"{path}: cannot be read: unzipped it has 104,000,256 bytes, expected at most 100,000,000; write it as "
        "safetensors",
    ):
        read_arrays(path)
    np.savez(path, x=np.zeros(9_000_000), y=np.zeros(4_000_000))
    assert read_arrays(path)[0]["x"].shape == (9_000_000,)


@pytest.mark.parametrize("count", [10**6, 2**50])
def test_an_array_shorter_than_its_header_says(count: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (count,)})
        member.write(bytes(12))
    with pytest.raises(CheckpointError, match=r"a\.npz: cannot be read: "):
        read_arrays(tmp_path / "a.npz")


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(CheckpointError, match=r"a\.npz: cannot be read: .*allow_pickle"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["mine.pt", "mine.npy"])
def test_files_without_names_say_how_to_write_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{name}: .*safetensors\.torch\.save_file or numpy\.savez"):
        read_arrays(tmp_path / name)


# Arrays of any library: NumPy's, capsules, stand-ins for those of others. tests/parity has the others themselves

X = numbers("float32")


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy(dtype: str, layout: str) -> None:
    whole = numbers(dtype)
    x = VIEWS[layout](whole)
    before = whole.tobytes()
    read = any_array(x)
    assert type(read) is np.ndarray
    assert same_bits(read, np.asarray(x))
    assert read is x or layout == "scalar"
    assert whole.tobytes() == before


class Foreign:
    """An array of no known library, that is read by DLPack; NumPy lends its bits."""

    def __init__(self, x: np.ndarray, device: int = 1) -> None:
        self.x, self.device = x, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **options: Any) -> Any:
        return self.x.__dlpack__(**options)


class OfAnOldLibrary(Foreign):
    """One that knows the capsule without a version alone."""

    def __dlpack__(self) -> Any:
        return super().__dlpack__()


@pytest.mark.parametrize("kind", [Foreign, OfAnOldLibrary])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
def test_dlpack(dtype: str, layout: str, kind: type[Foreign]) -> None:
    x = np.asarray(LAYOUTS[layout](numbers(dtype)))
    read = any_array(kind(x))
    assert same_bits(read, x)
    assert not read.flags.writeable
    assert same_bits(any_array(kind(x[..., ::-1]) if x.ndim else kind(x)), x[..., ::-1] if x.ndim else x)


def test_memory_outlives_its_owner() -> None:
    x = numbers("float64")
    read = any_array(Foreign(x.copy()))
    for _ in range(50):  # what was freed would be written over
        x.copy()
    assert same_bits(read, x)


def test_array_api_strict() -> None:
    x = numbers("float64")
    assert same_bits(any_array(array_api_strict.asarray(x)), x)
    x.flags.writeable = False
    assert same_bits(any_array(array_api_strict.asarray(x, copy=False)), x)


def test_device_memory_is_fetched() -> None:
    there = Foreign(X, device=2)
    there.cpu = lambda: Foreign(there.x)
    assert same_bits(any_array(there), there.x)
    with pytest.raises(TypeError, match=r"it is on DLPack's device \(8, 0\): copy it to the CPU"):
        any_array(Foreign(X, device=8))


def test_buffers_lists_and_array_methods() -> None:
    assert same_bits(any_array(memoryview(X)), X)
    assert same_bits(any_array(bytearray(b"\x01\x02")), np.array([1, 2], np.uint8))
    assert same_bits(any_array(SimpleNamespace(__array_interface__=X.__array_interface__)), X)
    assert same_bits(any_array(([1, 2], [3, 4])), np.array([[1, 2], [3, 4]]))


class OfTorch:
    """A tensor that NumPy may not read."""

    shape = (2, 3)

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


NONE = "it is no array: pass one of NumPy, torch, JAX, CuPy, MLX, or with __dlpack__"


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (None, f"builtins.NoneType cannot be read: {NONE}"),
        ("text", f"builtins.str cannot be read: {NONE}"),
        ([OfTorch()], "builtins.list cannot be read: Can't call numpy() on Tensor that requires grad."),
        (Foreign(numbers("bfloat16")), f"{__name__}.Foreign cannot be read: DLPack only supports signed/unsigned "
         "integers, float and complex dtypes."),
        (np.array(["a"]), "numpy.ndarray of dtype <U1 holds no numbers"),
        (np.array([None]), "numpy.ndarray of dtype object holds no numbers"),
        (np.zeros(2, "M8[s]"), "numpy.ndarray of dtype datetime64[s] holds no numbers"),
        (np.ma.masked_array([1.0, 2.0], [True, False]),
         "numpy.ma.MaskedArray cannot be read: its mask would be lost: fill it first"),
    ],
    ids=lambda x: type(x).__name__,
)  # fmt: skip
def test_no_array(x: Any, why: str) -> None:
    with says(TypeError, f"q: {why}"):
        any_array(x, "q")
