"""`refdiff golden`: vectors written, outputs judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refdiff.oracle import golden
from refdiff.oracle.cases import fixed
from refdiff.oracle.cases.structure import Structure
from tests.oracle.golden.vectors import case, read_cases, right, write_raw

from .conftest import Cli


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small structure for each profile."""
    few = {name: (of, (Structure(1, 3, 4),)) for name, (of, _) in fixed.PROFILES.items()}
    monkeypatch.setattr(fixed, "PROFILES", few)


def test_export(here: Path, cli: Cli) -> None:
    flags = ("--spec", "diff_v2", "--dtype", "bfloat16", "-s", "3", "--no-gradients")
    assert cli("golden", "export", "vectors", *flags, "--profile", "tiny_values")[:2] == (0, "vectors\n")
    ((name, found),) = read_cases(here / "vectors").items()
    assert name.startswith("tiny_values-")
    assert found.spec.lambda_form == "sigmoid"
    assert found.recipe.storage == "bfloat16"
    assert found.tensors == ["out", "lse1", "lse2", "lambda_full"]


def test_export_for_other_projects(here: Path, cli: Cli) -> None:
    flags = ("--spec", "attention", "--profile", "degenerate", "--profile", "natural")
    done = cli("golden", "export", "trace", "--for", "flashinfer-trace", *flags)
    assert (done.status, done.out, done.err.endswith("2 cases of layer 2\n")) == (0, "trace\n", True), done.err
    assert len([*(here / "trace" / "blob").rglob("*.safetensors")]) == 2
    assert cli("golden", "export", "trace", "--for", "llama.cpp", *flags).err.endswith(
        "VECTORS trace: got a folder with files, expected a new or empty one\n"
    )
    done = cli("golden", "export", "new", "--for", "flashinfer-trace", "--profile", "natural")
    said = "--for flashinfer-trace: rope: got 'halves', expected 'none', since flashinfer-trace has no form for others"
    assert said in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("spec", "flags", "layer"),
    [
        ("hf_diffllama", (), 2),
        ("spec.json", (), 0),
        ("layer.json", (), 5),
        ("layer.json", ("--layer", "3"), 3),
    ],
)
def test_the_layer_is_said(spec: str, flags: tuple[str, ...], layer: int, here: Path, cli: Cli) -> None:
    for name, more in (("spec.json", {}), ("layer.json", {"layer": 5})):
        (here / name).write_text(json.dumps({"preset": "hf_diffllama", **more}))
    done = cli("golden", "export", "vectors", "--spec", spec, *flags, "--profile", "natural", "--no-gradients")
    assert done.err.endswith(f"1 cases of layer {layer}\n")
    assert [found.spec.layer for found in read_cases(here / "vectors").values()] == [layer]


def test_verify(here: Path, cli: Cli) -> None:
    golden.export("vectors", [case("v2")], gradients=False)
    outputs = right(here / "vectors")
    write_raw(here / "good", outputs)
    passed = "pass: cases with an output: 1; tensors judged: 4\n"
    assert cli("golden", "verify", "vectors", "good") == (0, passed, "")
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
    assert "\n\nv2:\nfail, judged as " in named
    assert "\ndiagnosis: " in named
    assert "--diagnose" not in named
    done = cli("golden", "verify", "vectors", ".")
    assert done.status == 1
    assert "missing: no out in .safetensors, .npz or .out.f32 of v2" in done.out
