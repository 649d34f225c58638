"""The golden values are what tests/golden/make.py writes, here and now."""

from __future__ import annotations

import json
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


def test_tensors(again: Path) -> None:
    names = files(again, ".safetensors")
    assert names == files(FOLDER, ".safetensors")
    outputs = 0
    for name in names:
        # bfloat16 is unknown to NumPy: compare those files as bytes
        if not name.endswith("expected.safetensors"):
            assert (again / name).read_bytes() == (FOLDER / name).read_bytes(), name
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
