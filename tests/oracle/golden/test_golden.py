"""Test vectors: what the files hold, outputs judged as `check` does, changed files, and the form of other projects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refdiff.errors import CheckpointError
from refdiff.oracle import Spec, budget, cases, check, golden, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.inputs.arrays import read_arrays, write_arrays
from tests.layers.inputs import says
from tests.oracle.arrays import same_bits
from tests.oracle.golden.vectors import KINDS, MUTATIONS, case, read_cases, right, write_raw
from tests.tolerances import FLOAT64, close


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("golden") / "vectors"
    golden.export(made, [case(kind) for kind in KINDS])
    return made


@pytest.fixture
def one(tmp_path: Path) -> Path:
    golden.export(tmp_path / "vectors", [case("v2")], gradients=False)
    return tmp_path / "vectors"


def verified(vectors: Path, outputs: dict[str, dict[str, np.ndarray]], folder: Path, **options: bool) -> golden.Report:
    """Verify outputs that a program wrote as raw float32."""
    write_raw(folder / "raw", outputs)
    return golden.verify(vectors, folder / "raw", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_a_case(vectors: Path, kind: str) -> None:
    read, of = read_cases(vectors)[kind], case(kind)
    for name, x in {**of.inputs, "dout": of.dout}.items():
        assert same_bits(read.arrays[f"inputs.{name}"], np.asarray(x))
    found = budget(of.spec, of.inputs, of.dtype, dout=of.dout)
    assert (read.spec, read.recipe, tuple(read.tensors)) == (of.spec, found.recipe, found.names)
    expected = truth(of.spec, of.inputs, dout=of.dout)
    close(read.arrays["expected.out"], expected.out, FLOAT64)
    close(read.arrays["expected.dv"], expected.grads["v"], FLOAT64)
    close(read.arrays["expected.lse1"], expected.lse1, FLOAT64)
    close(read.arrays["budget.out"], found.rows["out"].astype(np.float32), 1e-7)


def test_right_outputs_in_each_format(vectors: Path, tmp_path: Path) -> None:
    outputs = right(vectors)
    report = verified(vectors, outputs, tmp_path)
    assert report.cases.keys() == KINDS.keys()
    for name, verdict in report.cases.items():
        of = case(name)
        assert verdict == check(outputs[name], of.spec, of.inputs, recipe=of.dtype, dout=of.dout)
        assert verdict.status != "fail"
    for suffix in ("safetensors", "npz"):
        folder = tmp_path / suffix
        folder.mkdir()
        for name, arrays in outputs.items():
            if suffix == "npz":
                np.savez(folder / f"{name}.npz", **arrays)
            else:
                write_arrays(folder / f"{name}.safetensors", arrays, {})
    assert golden.verify(vectors, tmp_path / "npz") == golden.verify(vectors, tmp_path / "safetensors") == report


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutated_outputs(vectors: Path, tmp_path: Path, mutation: str) -> None:
    kind, name, change = MUTATIONS[mutation]
    outputs = right(vectors)[kind]
    changed = change(outputs[name]).astype("<f4")
    report = verified(vectors, {kind: {"out": outputs["out"], name: changed}}, tmp_path)
    assert [tensor for tensor, of in report.cases[kind].tensors.items() if of.status == "fail"] == [name]
    assert f"\n{kind}:\nfail" in str(report)


def test_the_mistake_of_the_first_failure(tmp_path: Path) -> None:
    golden.export(tmp_path / "vectors", [case("whole"), case("unseen")])
    wrong = right(tmp_path / "vectors")
    for name in ("whole", "unseen"):
        of = case(name)
        wrong[name] = {"out": truth(of.spec.replace(pairing="interleaved"), of.inputs).out.astype("<f4")}
    report = verified(tmp_path / "vectors", wrong, tmp_path, diagnose=True)
    assert [(name, found.name) for name, found in report.diagnosis.items()] == [("unseen", "interleaved_pairs")]
    assert "\ndiagnosis: unique: interleaved_pairs" in str(report)
    assert report.to_dict()["diagnosis"]["unseen"] == report.diagnosis["unseen"].to_dict()


def test_missing_outputs(vectors: Path, tmp_path: Path) -> None:
    outputs = right(vectors)
    del outputs["half"]["out"], outputs["v2"]
    report = verified(vectors, outputs, tmp_path)
    assert (report.status, report.missing) == ("fail", ("half", "v2"))
    assert "missing: no out in .safetensors, .npz or .out.f32 of half, v2" in str(report)
    with says(CheckpointError, f"{tmp_path / 'nowhere'}: no folder of outputs"):
        golden.verify(vectors, tmp_path / "nowhere")
    assert golden.verify(vectors, tmp_path).missing == tuple(sorted(KINDS))


def test_outputs_that_do_not_fit(one: Path, tmp_path: Path) -> None:
    out = right(one)["v2"]["out"]
    report = verified(one, {"v2": {"out": out}}, tmp_path)
    assert report
    assert list(report.cases["v2"].tensors) == ["out"]
    raw = tmp_path / "raw" / "v2.out.f32"
    signalling = out.copy()
    signalling.view(np.uint32).flat[3] = 0x7F800001
    signalling.tofile(raw)
    assert not golden.verify(one, raw.parent)  # pytest makes an error of a warning
    out[..., :-1].tofile(raw)
    with says(CheckpointError, f"{raw}: got 224 bytes, expected 256: out has the shape (1, 2, 4, 8), in float32"):
        golden.verify(one, raw.parent)
    for arrays, why in (
        ({"out": out[0]}, r"v2: cannot be judged: out: got shape \(2, 4, 8\), expected \(1, 2, 4, 8\)"),
        ({"out": out, "result": out}, r"v2: cannot be judged: 'result' cannot be judged: there are out, lse1"),
        ({"out": out.astype(np.int32)}, r"v2: cannot be judged: out: got dtype int32, expected float64"),
    ):
        write_arrays(tmp_path / "v2.safetensors", arrays, {})
        with pytest.raises(CheckpointError, match=why):
            golden.verify(one, tmp_path)
    out.tofile(tmp_path / "v2.out.f32")
    with says(CheckpointError, f"{tmp_path / 'v2.safetensors'}: v2 has outputs in v2.out.f32 too; leave one of them"):
        golden.verify(one, tmp_path)


def test_arguments(tmp_path: Path) -> None:
    with says(ValueError, "cases: got none, expected at least one; take them from oracle.cases"):
        golden.export(tmp_path, [])
    with says(ValueError, "two cases have one name: ['v2']"):
        golden.export(tmp_path, [case("v2"), case("v2")])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        golden.export(tmp_path / "vectors", [case("half")], gradients=False)
    assert Path(caught.value.filename).parent == tmp_path / "vectors"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["longer", "gone", "link", "pipe"])
def test_a_changed_case(one: Path, tmp_path: Path, change: str) -> None:
    file = one / "case_v2.safetensors"
    data = file.read_bytes()
    file.unlink()
    if change == "pipe":
        os.mkfifo(file)
    elif change == "link":
        (tmp_path / "secret").write_bytes(data)
        file.symlink_to(tmp_path / "secret")
    elif change == "longer":
        file.write_bytes(data + b"\0")
    said = {"longer": "bytes", "gone": "no test vectors", "link": "is a link that leads out", "pipe": "a named pipe"}
    with pytest.raises(CheckpointError, match=said[change]):
        golden.verify(one, tmp_path)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({}, "'spec'"),
        ({"spec": "{", "recipe": "{}"}, "Expecting"),
        ({"spec": "[]", "recipe": "{}"}, ".* mapping"),
        ({"spec": '{"head_dim": "1"}', "recipe": "{}"}, ""),
    ],
)
def test_vectors_of_somebody_elses(tmp_path: Path, metadata: dict[str, str], says: str) -> None:
    """With fields that no export writes."""
    arrays = {"inputs.q": np.ones(3), "expected.out": np.ones(3)}
    write_arrays(tmp_path / "case_a.safetensors", arrays, metadata)
    write_raw(tmp_path / "raw", {"a": {"out": np.ones(3, dtype=np.float32)}})
    with pytest.raises(CheckpointError, match=f"a: cannot be judged: {says}"):
        golden.verify(tmp_path, tmp_path / "raw")


# Vectors in the form of other projects; tests/parity/test_golden_formats.py has these projects' own readers

OUTPUTS = """    import inspect

    file = np.load(FOLDER / "outputs.npz")
    case = inspect.currentframe().f_back.f_locals["case"]
    return {name.split("/")[1]: file[name] for name in file.files if name.split("/")[0] == case} or NotImplemented
"""
"""A kernel that has computed everything before."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors with the test, whose kernel is the one above."""
    made = tmp_path_factory.mktemp("golden") / "vectors"
    assert golden.export(made, [case(kind) for kind in KINDS], target="pytest") == ()
    test = made / "test_vectors.py"
    before, _, after = test.read_text().partition("    return NotImplemented")
    test.write_text(before + OUTPUTS + after.partition("\n")[2])
    (made / "conftest.py").write_text('import sys\n\nsys.modules["refdiff"] = None  # an import of it is an error\n')
    return made


def run(folder: Path, outputs: dict[str, dict[str, np.ndarray]]) -> tuple[int, str]:
    arrays = {f"{kind}/{name}": x for kind, of in outputs.items() for name, x in of.items()}
    np.savez(folder / "outputs.npz", **arrays)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:refdiff", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=folder, env={"PATH": ""}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_right_outputs_pass_without_refdiff(folder: Path) -> None:
    status, text = run(folder, right(folder))
    assert (status, f"\n{len(KINDS)} passed" in text) == (0, True), text
    some = {"whole": right(folder)["whole"]}
    status, text = run(folder, some)
    assert f"[{len(KINDS) - 1}] test_vectors.py" in text, text
    assert "the kernel does not serve it" in text
    assert golden.verify(folder, folder).missing == tuple(sorted(KINDS))  # it is a folder of vectors as well


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutated_outputs_fail_without_refdiff(folder: Path, mutation: str) -> None:
    kind, name, change = MUTATIONS[mutation]
    outputs = right(folder)
    outputs[kind][name] = change(outputs[kind][name]).astype("<f4")
    status, text = run(folder, outputs)
    assert (status, f"1 failed, {len(KINDS) - 1} passed" in text) == (1, True), text
    assert f"test_vectors[{kind}]" in text
    assert [line.partition(":")[0] for line in text.splitlines() if line.startswith(tuple(right(folder)[kind]))] == [
        name
    ]


def test_the_layout_of_a_trace(tmp_path: Path) -> None:
    """What https://github.com/flashinfer-ai/flashinfer-bench/tree/main/docs/flashinfer-trace says of the files."""
    spec = small_spec("attention").replace(sinks=True, window=4)
    made = [
        *cases("discriminating", spec=spec, dtype="bfloat16"),
        *cases("degenerate", spec=spec, dtype="bfloat16")[:2],
    ]
    left_out = golden.export(tmp_path / "trace", made, target="flashinfer-trace")
    assert left_out == ("discriminating-3-layer-1x6x13-bfloat16-0", "degenerate-1-0x3x5-bfloat16-0")
    files = sorted((tmp_path / "trace" / "definitions" / "attention").glob("*.json"))
    assert len(files) == 2  # with a key mask, and without
    for file in files:
        definition = json.loads(file.read_text())
        assert (definition["name"], definition["op_type"]) == (file.stem, "attention")
        compile(definition["reference"], "reference", "exec")
        entries = (tmp_path / "trace" / "workloads" / "attention" / f"{file.stem}.jsonl").read_text().splitlines()
        for entry in map(json.loads, entries):
            assert (entry["definition"], entry["solution"], entry["evaluation"]) == (file.stem, None, None)
            workload = entry["workload"]
            assert workload["inputs"].keys() == definition["inputs"].keys()
            sizes = {n: axis.get("value", workload["axes"].get(n)) for n, axis in definition["axes"].items()}
            for name, source in workload["inputs"].items():
                arrays, metadata = read_arrays(tmp_path / "trace" / source["path"])
                x, described = arrays[source["tensor_key"]], definition["inputs"][name]
                assert (x.shape, x.dtype.name) == (tuple(sizes[a] for a in described["shape"]), described["dtype"])
                assert Spec(**json.loads(metadata["spec"])) == spec
                assert arrays["expected.out"].shape == (*arrays["budget.out"].shape, spec.out_dim)


def test_arguments_of_formats(tmp_path: Path) -> None:
    with says(ValueError, "target: got 'c++', expected one of vectors, pytest, llama.cpp, flashinfer-trace"):
        golden.export(tmp_path / "a", [case("v2")], target="c++")
    with says(ValueError, "rope: got 'interleaved', expected 'none', since flashinfer-trace has no form for others"):
        golden.export(tmp_path / "a", [case("v2")], target="flashinfer-trace")
    assert not (tmp_path / "a").exists()
    with says(
        ValueError, "cases: got none that flashinfer-trace has a form for, expected dense ones that are not empty"
    ):
        golden.export(tmp_path / "a", [case("packed")], target="flashinfer-trace")
    (tmp_path / "notes.txt").touch()
    with says(ValueError, f"{tmp_path}: got a folder with files, expected a new or empty one"):
        golden.export(tmp_path, [case("v2")], target="llama.cpp")
