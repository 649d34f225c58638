"""`refdiff golden`: vectors written, outputs judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refdiff.oracle import golden
from refdiff.oracle.cases import fixed
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.golden.writing import read_manifest
from tests.oracle.golden.vectors import case, right, write_raw

from .conftest import Cli


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small structure for each profile, and no search for blind spots."""
    few = {name: (of, (Structure(1, 3, 4),)) for name, (of, _) in fixed.PROFILES.items()}
    monkeypatch.setattr(fixed, "PROFILES", few)
    monkeypatch.setattr(fixed.Case, "blind_to", ())


def test_export(here: Path, cli: Cli) -> None:
    flags = ("--spec", "diff_v2", "--dtype", "bfloat16", "-s", "3", "--npz", "--no-gradients")
    assert cli("golden", "export", "vectors", *flags, "--profile", "tiny_values")[:2] == (0, "vectors\n")
    manifest, changed = read_manifest(here / "vectors")
    (entry,) = manifest["cases"]
    assert (changed, entry["profile"], entry["spec"]["lambda_form"]) == ([], "tiny_values", "sigmoid")
    assert entry["recipe"]["storage"] == "bfloat16"
    assert [t["name"] for t in entry["judged"]] == ["out", "lse1", "lse2", "lambda_full"]
    assert len(list((here / "vectors").glob("*.npz"))) == 1


def test_verify(here: Path, cli: Cli) -> None:
    golden.export("vectors", [case("v2")], gradients=False)
    outputs = right(here / "vectors")
    write_raw(here / "good", outputs)
    assert cli("golden", "verify", "vectors", "good") == (0, "pass: cases with an output: 1; tensors judged: 4\n", "")
    outputs["v2"]["out"][0, 0, 0] *= 2
    write_raw(here / "bad", outputs)
    done = cli("golden", "verify", "vectors", "bad", "--json")
    report = json.loads(done.out)
    assert done.status == 1
    assert report["status"] == report["cases"]["v2"]["tensors"]["out"]["status"] == "fail"
    assert cli("golden", "verify", "vectors", "bad").out.endswith(
        "\n--diagnose names the mistake of the first failure\n"
    )
    named = cli("golden", "verify", "vectors", "bad", "--diagnose").out
    assert "\ndiagnosis: " in named
    assert "--diagnose" not in named
    done = cli("golden", "verify", "vectors", ".")
    assert done.status == 1
    assert "missing: v2: no output" in done.out
