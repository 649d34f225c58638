"""The readers in C++ and Rust say what Python says: of right outputs and of wrong ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from refdiff.oracle import golden
from tests.oracle.golden.vectors import KINDS, MUTATIONS, case, right, write_raw

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
    return done.returncode, sorted(done.stdout.splitlines())


def expected(vectors: Path, outputs: Path) -> tuple[int, list[str]]:
    report = golden.verify(vectors, outputs)
    lines = [f"{name} {tensor} {of.status}" for name, v in report.cases.items() for tensor, of in v.tensors.items()]
    return int(report.status != "pass"), sorted(lines)


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


def test_no_files(reader: Path, vectors: Path, tmp_path: Path) -> None:
    other = (1, ["index.txt is of another version"])
    assert said(reader, tmp_path, tmp_path) == other
    (tmp_path / "index.txt").write_text("refdiff-golden 5\ncase a\n")
    assert said(reader, tmp_path, tmp_path) == other
    write_raw(tmp_path / "raw", {"half": {"out": right(vectors)["half"]["out"]}})
    shutil.copy(vectors / "index.txt", tmp_path)
    status, lines = said(reader, tmp_path, tmp_path / "raw")
    assert (status, "half out fail" in lines) == (1, True)


def test_missing_and_short_outputs(reader: Path, vectors: Path, tmp_path: Path) -> None:
    outputs = right(vectors)
    del outputs["v2"]
    write_raw(tmp_path / "raw", outputs)
    (tmp_path / "raw" / "half.out.f32").write_bytes(b"1234")
    status, lines = said(reader, vectors, tmp_path / "raw")
    assert status == 1
    assert "v2 out missing" in lines
    assert "half out fail" in lines
