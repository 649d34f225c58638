"""One file, byte for byte the one that the safetensors library writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from refdiff.model.weights import safetensors_file as writing
from refdiff.model.weights.safetensors_file import write_safetensors

TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


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
@pytest.mark.parametrize("dtype", TYPES)
def test_bytes_are_those_of_the_library(tmp_path: Path, dtype: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "TILE", tile)
    given = {name: values.astype(TYPES[dtype]).astype(np.float64) for name, values in arrays().items()}
    write_safetensors(tmp_path / "ours", given, dtype)
    theirs = {name: values.astype(TYPES[dtype]) for name, values in given.items()}
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


def test_arrays_of_another_library(tmp_path: Path) -> None:
    import array_api_strict

    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_safetensors(tmp_path / "ours", {"x": array_api_strict.asarray(values)}, "float32")
    assert (tmp_path / "ours").read_bytes() == safetensors.numpy.save({"x": values}, metadata={"format": "pt"})


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    big = np.array([1.0, 65520.0], np.float32)
    with pytest.raises(ValueError, match=r"model\.x has values beyond float16's range of ±65504.* bfloat16 or float32"):
        write_safetensors(tmp_path / "ours", {"model.x": big}, "float16")
    # what was infinite before is no loss
    write_safetensors(tmp_path / "ours", {"model.x": np.array([1, np.inf, np.nan, 65519.0])}, "float16")
    read = safetensors.numpy.load_file(tmp_path / "ours")["model.x"]
    np.testing.assert_array_equal(read, np.array([1, np.inf, np.nan, 65504], np.float16))
