"""`refdiff golden`: vectors written, outputs judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refdiff.cli import main
from refdiff.oracle import golden
from refdiff.oracle.golden.manifest import read_manifest
from refdiff.oracle.strategies import fixed
from refdiff.oracle.strategies.structure import Structure
from tests.oracle.golden.vectors import case, right, write_raw

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small structure for each profile, and no search for blind spots."""
    monkeypatch.setattr(
        fixed, "PROFILES", {name: (of, (Structure(1, 3, 4),)) for name, (of, _) in fixed.PROFILES.items()}
    )
    monkeypatch.setattr(fixed.Case, "blind_to", ())


@pytest.mark.usefixtures("few")
def test_export(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "vectors"
    flags = ["--preset", "diff_v2", "--dtype", "bfloat16", "-s", "3", "--npz", "--no-gradients"]
    assert main(["golden", "export", str(folder), *flags, "--profile", "whisper"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    manifest, changed = read_manifest(folder)
    assert changed == []
    (entry,) = manifest["cases"]
    assert (entry["profile"], entry["spec"]["lambda_form"], entry["recipe"]["storage"]) == (
        "whisper",
        "sigmoid",
        "bfloat16",
    )
    assert [t["name"] for t in entry["judged"]] == ["out", "lse1", "lse2", "lambda_full"]
    assert len(list(folder.glob("*.npz"))) == 1
    assert main(["golden", "export", str(folder), "--no-gradients"]) == 0
    assert [c["profile"] for c in read_manifest(folder)[0]["cases"]] == ["identify", "whisper"]


def test_verify(tmp_path: Path, capsys: Capture) -> None:
    vectors = tmp_path / "vectors"
    golden.export(vectors, [case("v2")], gradients=False)
    outputs = right(vectors)
    write_raw(tmp_path / "good", outputs)
    assert main(["golden", "verify", str(vectors), str(tmp_path / "good")]) == 0
    assert capsys.readouterr().out == "pass: 1 cases\n"
    outputs["v2"]["out"][0, 0, 0] *= 2
    write_raw(tmp_path / "bad", outputs)
    assert main(["golden", "verify", str(vectors), str(tmp_path / "bad"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == report["cases"]["v2"]["tensors"]["out"]["status"] == "fail"
    assert main(["golden", "verify", str(vectors), str(tmp_path)]) == 1
    assert "missing: v2: no output" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["export", "a", "b"], "export takes VECTORS alone; OUTPUTS and --json are for verify"),
        (["export", "a", "--json"], "export takes VECTORS alone; OUTPUTS and --json are for verify"),
        (["verify", "a"], "verify needs OUTPUTS, the folder of what your program computed"),
    ],
)
def test_usage(args: list[str], says: str, capsys: Capture) -> None:
    assert main(["golden", *args]) == 2
    assert capsys.readouterr().err == f"refdiff golden: error: {says}\n"


def test_no_vectors(tmp_path: Path, capsys: Capture) -> None:
    assert main(["golden", "verify", str(tmp_path), str(tmp_path)]) == 1
    assert "manifest.json: no manifest of golden files: No such file or directory" in capsys.readouterr().err
