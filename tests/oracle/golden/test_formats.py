"""Vectors in the form of other projects; tests/parity/test_golden_formats.py has these projects' own readers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refdiff.oracle import Spec, cases, golden
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.inputs.arrays import read_arrays
from tests.layers.inputs import says
from tests.oracle.golden.vectors import KINDS, MUTATIONS, case, right

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


def test_arguments(tmp_path: Path) -> None:
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
