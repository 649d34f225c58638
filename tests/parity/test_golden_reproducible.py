"""The golden values are what tests/golden/make.py writes, here and now."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.compare import relative
from tests.golden.make import CASES, FOLDER, make

VERSIONS = {"transformers", "torch", "numpy", "python"}


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    make(folder)
    return folder


def files(folder: Path, suffix: str) -> list[str]:
    """The files of the cases; other scripts keep theirs beside them."""
    return sorted(str(path.relative_to(folder)) for name in CASES for path in (folder / name).glob(f"*{suffix}"))


def content(path: Path) -> Any:
    """A JSON file less the versions of those who wrote it."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key not in VERSIONS | {"transformers_version"}}


def test_json(again: Path) -> None:
    names = files(again, ".json")
    assert names == files(FOLDER, ".json")
    assert len(names) > len(CASES)
    for name in ["golden.json", *names]:
        assert content(again / name) == content(FOLDER / name), name


def same_weights(new: Path, old: Path) -> bool:
    """Equal bytes; in float64 the last two bits of what torch draws are the processor's, with AVX-512 or without."""
    if (made := new.read_bytes()) == (stored := old.read_bytes()):
        return True
    (size,) = struct.unpack("<Q", stored[:8])
    header = stored[8 : 8 + size]
    if made[: 8 + size] != stored[: 8 + size] or b'"F32"' in header or b"F16" in header:
        return False
    a, b = (np.frombuffer(data[8 + size :], "<f8") for data in (made, stored))
    return bool(np.all(np.abs(a - b) <= 4 * np.spacing(np.abs(b))))


def test_tensors(again: Path) -> None:
    names = files(again, ".safetensors")
    assert names == files(FOLDER, ".safetensors")
    outputs = 0
    for name in names:
        # bfloat16 is unknown to NumPy: compare those files as bytes
        if not name.endswith("expected.safetensors"):
            assert same_weights(again / name, FOLDER / name), name
            continue
        new, old = load_file(again / name), load_file(FOLDER / name)
        assert new.keys() == old.keys()
        for key, value in new.items():
            if "/out/" in key and value.dtype == np.float64:
                assert value.shape == old[key].shape
                assert relative(value, old[key]) <= 1e-12, f"{name}: {key}"
                outputs += 1
            else:
                np.testing.assert_array_equal(value, old[key], err_msg=f"{name}: {key}")
    assert outputs > 100
