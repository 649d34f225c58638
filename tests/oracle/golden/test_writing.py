"""What a folder of test vectors holds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from refdiff.oracle import Spec, budget, golden, truth
from refdiff.oracle.cases import fixed
from refdiff.oracle.golden import writing
from refdiff.oracle.inputs.arrays import read_arrays
from tests.layers.inputs import says
from tests.oracle.arrays import same_bits
from tests.oracle.golden.vectors import KINDS, case
from tests.tolerances import FLOAT64, close


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("golden") / "vectors"
    golden.export(made, [case(kind) for kind in KINDS], formats=("safetensors", "npz"))
    return made


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return manifest


@pytest.mark.parametrize("kind", KINDS)
def test_case(folder: Path, kind: str) -> None:
    entry = next(c for c in manifest_of(folder)["cases"] if c["id"] == kind)
    arrays, metadata = read_arrays(folder / entry["file"])
    of = case(kind)
    for name, x in of.inputs.items():
        assert same_bits(arrays[f"inputs.{name}"], np.asarray(x))
    assert same_bits(arrays["inputs.dout"], of.dout)
    found = budget(of.spec, of.inputs, of.dtype, dout=of.dout)
    assert [t["name"] for t in entry["judged"]] == list(found.names)
    right = truth(of.spec, of.inputs, dout=of.dout)
    close(arrays["expected.out"], right.out, FLOAT64)
    close(arrays["expected.dv"], right.grads["v"], FLOAT64)
    close(arrays["expected.lse1"], right.lse1, FLOAT64)
    close(arrays["budget.out"], found.rows["out"].astype(np.float32), 1e-7)
    assert Spec(**entry["spec"]) == Spec(**json.loads(metadata["spec"])) == of.spec
    assert entry["recipe"] == json.loads(metadata["recipe"])
    listed = {t["name"]: t for t in entry["tensors"]}
    assert listed.keys() == arrays.keys()
    assert all(listed[name]["shape"] == list(x.shape) for name, x in arrays.items())
    q = {name: listed["inputs.q"][name] for name in ("name", "role", "dtype", "axes", "shape")}
    shape = list(of.inputs["q"].shape)
    assert q == {"name": "inputs.q", "role": "input", "dtype": of.dtype, "axes": "B H T d", "shape": shape}
    roles = {t["role"] for t in entry["tensors"]}
    assert roles == {"input", "expected", "grad", "budget"}
    with np.load(folder / f"case_{kind}.npz") as file:
        assert set(file.files) == set(arrays)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_earlier_export(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    with pytest.raises(OSError, match="No space left") as caught:
        golden.export(tmp_path / "old", [case("v2")])
    assert Path(caught.value.filename).parent == tmp_path / "old"
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with says(ValueError, "formats has ['gguf'], but may have safetensors, npz"):
        golden.export(tmp_path, [case("v2")], formats=("safetensors", "gguf"))
    for cases, formats in (([], ("safetensors",)), ([case("v2")], ("npz",))):
        with says(ValueError, "there must be at least one case, and safetensors among the formats"):
            golden.export(tmp_path, cases, formats=formats)
    with says(ValueError, "two cases have one name: ['v2']"):
        golden.export(tmp_path, [case("v2"), case("v2")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gradients", [True, False])
def test_files_that_are_too_large_are_refused_before_they_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradients: bool
) -> None:
    """Files that exceed a limit by less than what their least size leaves out are refused after they are computed."""

    def limits(case_size: int, folder_size: int) -> None:
        monkeypatch.setattr(writing, "LARGEST_CASE", case_size)
        monkeypatch.setattr(writing, "LARGEST_FOLDER", folder_size)

    def refused(error: type[Exception], why: str, **options: Any) -> None:
        with pytest.raises(error, match=why):
            golden.export(tmp_path / "vectors", [case("shared")], gradients=gradients, **options)
        assert not (tmp_path / "vectors").exists()

    golden.export(tmp_path / "there", [case("shared")], gradients=gradients)
    (file,) = (tmp_path / "there").glob("case_*")
    size = file.stat().st_size
    limits(size - 1, size * 2)
    refused(ValueError, rf"shared takes {size:,} bytes, more than {size - 1:,}: give a smaller case")
    limits(size, size)
    refused(ValueError, rf"the cases take [\d,]+ bytes, more than {size:,}: give fewer or smaller ones")
    monkeypatch.setattr(writing, "budget", Mock(side_effect=AssertionError("computed")))
    limits(size * 3 // 4, size * 2)
    refused(ValueError, rf"shared takes at least [\d,]+ bytes, more than {size * 3 // 4:,}: give a smaller case")
    limits(size, size)
    both = ("safetensors", "npz")
    refused(ValueError, rf"the cases take at least [\d,]+ bytes, more than {size:,}: give fewer", formats=both)
    limits(size, size * 2)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Mock(total=10**9, free=size * 3 // 4))
    refused(
        OSError, rf"the cases take at least [\d,]+ bytes, and {size * 3 // 4:,} are free; free some, or name another"
    )


def test_files_of_an_earlier_export_go_and_others_stay(tmp_path: Path) -> None:
    golden.export(tmp_path, [case("v2")], formats=("safetensors", "npz"), gradients=False)
    earlier = {path.name for path in tmp_path.iterdir()}
    (tmp_path / "notes.txt").touch()
    golden.export(tmp_path, [case("half")], gradients=False)
    left = {path.name for path in tmp_path.iterdir()}
    assert left & earlier == {"manifest.json", "index.txt"}
    assert len(left) == 4
    assert "notes.txt" in left
    (tmp_path / "manifest.json").write_text("{}")
    golden.export(tmp_path, [case("v2")], gradients=False)


def test_the_largest_cases_of_the_profiles_fit(tmp_path: Path) -> None:
    largest = fixed.cases("tiles", 0, spec=fixed.small_spec("timm"))[12]
    vars(largest)["blind_to"] = ()
    golden.export(tmp_path, [largest])
    (file,) = tmp_path.glob("case_*")
    assert 8_000_000 < file.stat().st_size < writing.LARGEST_CASE
