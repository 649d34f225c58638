"""Outputs judged by the files alone, as `check` judges them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from refdiff.errors import CheckpointError
from refdiff.oracle import budget, golden, truth
from refdiff.oracle.golden.writing import index_text, manifest_text, sha256
from refdiff.oracle.inputs.arrays import write_arrays
from tests.layers.inputs import says
from tests.oracle.golden.vectors import KINDS, MUTATIONS, case, right, write_raw


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("golden") / "vectors"
    golden.export(made, [case(kind) for kind in KINDS if kind != "cancelled"])
    return made


def verified(vectors: Path, outputs: dict[str, dict[str, np.ndarray]], folder: Path, **options: bool) -> golden.Report:
    """Verify outputs that a program wrote as raw float32."""
    write_raw(folder / "raw", outputs)
    return golden.verify(vectors, folder / "raw", **options)


def test_right_outputs(vectors: Path, tmp_path: Path) -> None:
    report = verified(vectors, right(vectors), tmp_path)
    assert report.cases.keys() == KINDS.keys() - {"cancelled"}
    for name, verdict in report.cases.items():
        of = case(name)
        expected = budget(of.spec, of.inputs, of.dtype, dout=of.dout).judge(right(vectors)[name])
        assert {n: t.status for n, t in verdict.tensors.items()} == {n: t.status for n, t in expected.tensors.items()}
        assert verdict.status != "fail"
        assert verdict.tensors["out"].status == "pass"
    for suffix in ("safetensors", "npz"):
        folder = tmp_path / suffix
        folder.mkdir()
        for name, arrays in right(vectors).items():
            if suffix == "npz":
                np.savez(folder / f"{name}.npz", **arrays)
            else:
                write_arrays(folder / f"{name}.safetensors", arrays, {})
        assert golden.verify(vectors, folder).to_dict() == report.to_dict()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_fail_as_check_says(vectors: Path, tmp_path: Path, mutation: str) -> None:
    kind, name, change = MUTATIONS[mutation]
    outputs = right(vectors)
    outputs[kind][name] = change(outputs[kind][name]).astype("<f4")
    report = verified(vectors, outputs, tmp_path)
    assert report.status == "fail"
    assert not report
    failed = {(c, t) for c, v in report.cases.items() for t, of in v.tensors.items() if of.status == "fail"}
    assert failed == {(kind, name)}
    of = case(kind)
    verdict = budget(of.spec, of.inputs, of.dtype, dout=of.dout).judge({name: outputs[kind][name]})
    assert verdict.status == "fail"
    assert f"\n{kind}:\nfail, judged as " in str(report)


def test_the_mistake_of_the_first_failure(tmp_path: Path) -> None:
    golden.export(tmp_path / "vectors", [case("whole"), case("half")])
    wrong = right(tmp_path / "vectors")
    for name in ("whole", "half"):
        of = case(name)
        wrong[name] = {"out": truth(of.spec.replace(pairing="interleaved"), of.inputs).out.astype("<f4")}
    report = verified(tmp_path / "vectors", wrong, tmp_path, diagnose=True)
    assert [(name, found.name) for name, found in report.diagnosis.items()] == [("whole", "interleaved_pairs")]
    assert "\ndiagnosis: unique: interleaved_pairs" in str(report)
    assert report.to_dict()["diagnosis"]["whole"] == report.diagnosis["whole"].to_dict()
    assert golden.verify(tmp_path / "vectors", tmp_path / "raw").diagnosis == {}


def test_one_byte_of_the_vectors(vectors: Path, tmp_path: Path) -> None:
    shutil.copytree(vectors, tmp_path / "vectors")
    file = tmp_path / "vectors" / "case_v2.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    report = verified(tmp_path / "vectors", right(vectors), tmp_path)
    assert report.status == "fail"
    assert report.changed == ("case_v2.safetensors: its bytes have been changed: SHA-256 is not the manifest's",)
    assert "v2" not in report.cases
    assert "changed: case_v2.safetensors" in str(report)


@pytest.mark.parametrize("change", [{"id": "../case"}, {"id": 3}, {"judged": 3}, {"judged": [{}]}, {"recipe": None}])
def test_a_manifest_of_somebody_elses(vectors: Path, tmp_path: Path, change: dict[str, object]) -> None:
    folder = tmp_path / "vectors"
    shutil.copytree(vectors, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"][0] |= change
    data = {name: (folder / name).read_bytes() for name in manifest["files"]}
    if "judged" not in change:
        data["index.txt"] = index_text(manifest["cases"], data).encode()
        (folder / "index.txt").write_bytes(data["index.txt"])
        manifest["files"]["index.txt"]["sha256"] = sha256(data["index.txt"])
    (folder / "manifest.json").write_text(manifest_text(manifest))
    with pytest.raises(CheckpointError, match=r"not what this version writes|not a plain name"):
        verified(folder, right(vectors), tmp_path)


def test_missing_outputs(vectors: Path, tmp_path: Path) -> None:
    outputs = right(vectors)
    del outputs["half"]["out"], outputs["v2"]
    report = verified(vectors, outputs, tmp_path)
    assert (report.status, report.missing) == ("fail", ("half", "v2"))
    lines = str(report).splitlines()
    assert "missing: half: no out in half.safetensors, half.npz or half.out.f32" in lines
    assert "missing too: v2" in lines
    with says(CheckpointError, f"{tmp_path / 'nowhere'}: no folder of outputs"):
        golden.verify(vectors, tmp_path / "nowhere")
    assert golden.verify(vectors, tmp_path).missing == ("whole", "half", "packed", "v2", "unseen", "shared")


def test_a_signalling_nan_fails_without_a_warning(vectors: Path, tmp_path: Path) -> None:
    outputs = {kind: {"out": of["out"].copy()} for kind, of in right(vectors).items()}
    outputs["v2"]["out"].view(np.uint32).flat[3] = 0x7F800001
    report = verified(vectors, outputs, tmp_path)  # pytest makes an error of a warning
    assert not report
    assert str(report).startswith("fail: ")


def test_outputs_that_do_not_fit(vectors: Path, tmp_path: Path) -> None:
    short = {"v2": {"out": right(vectors)["v2"]["out"][..., :-1].copy()}}
    with pytest.raises(CheckpointError, match=r"224 bytes, but out has the shape \(1, 2, 4, 8\), in float32 256 bytes"):
        verified(vectors, short, tmp_path)
    (tmp_path / "raw" / "v2.out.f32").write_bytes(b"12345")
    with pytest.raises(CheckpointError, match=r"v2\.out\.f32: 5 bytes, but "):
        golden.verify(vectors, tmp_path / "raw")
    write_arrays(tmp_path / "v2.safetensors", {"out": np.ones((2, 4, 8))}, {})
    with says(CheckpointError, "v2: out: got shape (2, 4, 8), expected (1, 2, 4, 8)"):
        golden.verify(vectors, tmp_path)
    write_arrays(tmp_path / "v2.safetensors", {"result": np.ones(2)}, {})
    with pytest.raises(CheckpointError, match=r"v2.safetensors: 'result' is no judged tensor: there are out, dq, dk"):
        golden.verify(vectors, tmp_path)


def test_outputs_that_would_be_passed_over(vectors: Path, tmp_path: Path) -> None:
    out = right(vectors)["v2"]["out"]
    with pytest.raises(CheckpointError, match=r"v2\.d_q\.f32: 'd_q' is no judged tensor: there are out, dq, dk"):
        verified(vectors, {"v2": {"out": out, "d_q": out}}, tmp_path)
    for name in ("v2.out.f32", "v2.npz"):
        folder = tmp_path / name
        write_raw(folder, {"v2": {"out": out}} if name.endswith("f32") else {})
        np.savez(folder / "v2.npz", out=out)
        write_arrays(folder / "v2.safetensors", {"lse1" if name.endswith("f32") else "out": out}, {})
        with says(CheckpointError, f"{folder / name}: another file of v2 has out too; leave one of them"):
            golden.verify(vectors, folder)
