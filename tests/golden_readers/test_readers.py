"""The readers in C++ and Rust say what Python says: of right outputs, of wrong ones, of vectors that were changed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from refdiff.oracle import golden
from tests.oracle.golden.vectors import KINDS, MUTATIONS, case, damaged, right, write_raw

HERE = Path(__file__).parent
COMPILERS = {
    "cpp": ("g++", ("-O1", "-Wall", "-Wextra", "-Werror", "-std=c++17")),
    "rs": ("rustc", ("--edition", "2021", "-O", "-D", "warnings")),
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=COMPILERS)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader in one language, built; without a compiler nothing can be said, but CI has them."""
    name, flags = COMPILERS[request.param]
    compiler = shutil.which(name)
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI has no {name}")
        pytest.skip(f"no {name} here")
    built = tmp_path_factory.mktemp("reader") / "golden"
    subprocess.run([compiler, *flags, "-o", built, HERE / f"golden.{request.param}"], check=True)
    return built


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("golden") / "vectors"
    golden.export(made, [case(kind) for kind in KINDS])
    return made


def said(reader: Path, vectors: Path, outputs: Path) -> tuple[int, list[str]]:
    done = subprocess.run([reader, vectors, outputs], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def expected(vectors: Path, outputs: Path) -> tuple[int, list[str]]:
    report = golden.verify(vectors, outputs)
    lines = [f"{name} {tensor} {of.status}" for name, v in report.cases.items() for tensor, of in v.tensors.items()]
    return int(report.status != "pass"), lines


def test_right_outputs(reader: Path, vectors: Path, tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", right(vectors))
    status, lines = said(reader, vectors, tmp_path / "raw")
    assert (status, lines) == expected(vectors, tmp_path / "raw")
    assert len(lines) > 50
    assert not [line for line in lines if line.endswith("fail")]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutated_outputs(reader: Path, vectors: Path, tmp_path: Path, mutation: str) -> None:
    kind, name, change = MUTATIONS[mutation]
    outputs = right(vectors)
    outputs[kind][name] = change(outputs[kind][name]).astype("<f4")
    write_raw(tmp_path / "raw", outputs)
    status, lines = said(reader, vectors, tmp_path / "raw")
    assert (status, lines) == expected(vectors, tmp_path / "raw")
    assert status == 1
    assert [line for line in lines if line.endswith("fail")] == [f"{kind} {name} fail"]


def test_a_damaged_index(reader: Path, vectors: Path, tmp_path: Path) -> None:
    shutil.copytree(vectors, tmp_path / "vectors")
    write_raw(tmp_path / "raw", {kind: {"out": of["out"]} for kind, of in right(vectors).items()})
    index = tmp_path / "vectors" / "index.txt"
    seen = 0
    for what, text in damaged(index.read_bytes()):
        index.write_bytes(text)
        assert said(reader, index.parent, tmp_path / "raw") == (1, ["index.txt - changed"]), what
        seen += 1
    assert seen > 500
    index.unlink()
    assert said(reader, index.parent, tmp_path / "raw") == (1, ["index.txt - changed"])


def test_any_byte_of_a_case(reader: Path, vectors: Path, tmp_path: Path) -> None:
    shutil.copytree(vectors, tmp_path / "vectors")
    write_raw(tmp_path / "raw", {"half": {"out": right(vectors)["half"]["out"]}})
    file = tmp_path / "vectors" / "case_half.safetensors"
    data = file.read_bytes()
    changes = [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(0, len(data), 211)]
    for changed in (*changes, data[:-1], data + b"\0", b""):
        file.write_bytes(changed)
        _, lines = said(reader, file.parent, tmp_path / "raw")
        assert [line for line in lines if line.startswith("half ")] == ["half - changed"]


def test_missing_and_short_outputs(reader: Path, vectors: Path, tmp_path: Path) -> None:
    outputs = right(vectors)
    del outputs["v2"]
    write_raw(tmp_path / "raw", outputs)
    (tmp_path / "raw" / "half.out.f32").write_bytes(b"1234")
    status, lines = said(reader, vectors, tmp_path / "raw")
    assert status == 1
    assert "v2 out missing" in lines
    assert "half out fail" in lines
