"""`refdiff golden`: vectors written, outputs judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refdiff.cli.spec import PROFILES, recipe_of
from refdiff.oracle import golden
from refdiff.oracle.cases import fixed
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.golden.manifest import read_manifest
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from tests.oracle.golden.vectors import case, right, write_raw

from .conftest import Cli

SPEC = Spec.preset("ms_v1", query_heads=4, key_heads=2, head_dim=8, layer=5)


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


@pytest.mark.parametrize(
    ("flags", "expected", "dtype"),
    [
        (["--spec", "spec.json", "--recipe", "recipe.json"], SPEC, "bfloat16"),
        (["--recipe", "float16", "--dtype", "float32"], small_spec("hf_diffllama"), "float32"),
        (["--spec", "spec.json", "--layer", "1", "--set", "window=3"], SPEC.replace(layer=1, window=3), "float32"),
    ],
)
def test_spec_and_recipe(flags: list[str], expected: Spec, dtype: str, here: Path, cli: Cli) -> None:
    (here / "spec.json").write_text(json.dumps(SPEC.to_dict()))
    (here / "recipe.json").write_text(json.dumps({"storage": "bfloat16", "p": "float32"}))
    assert cli("golden", "export", "vectors", "--profile", "tiny_values", "--no-gradients", *flags).status == 0
    (entry,) = read_manifest(here / "vectors")[0]["cases"]
    assert Spec(**entry["spec"]) == expected
    assert next(t for t in entry["tensors"] if t["name"] == "inputs.q")["dtype"] == dtype
    assert Recipe(**entry["recipe"]) == recipe_of(flags[flags.index("--recipe") + 1] if "--recipe" in flags else dtype)


def test_the_core_alone(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    of = (Structure(1, 3, 4), Structure(1, 3, 4, hidden=8))
    monkeypatch.setitem(fixed.PROFILES, "discriminating", ("discriminating", of))
    for flags, count in (([], 3), (["--core"], 2)):
        assert cli("golden", "export", ".", "--no-gradients", *flags).status == 0
        profiles = [case["profile"] for case in read_manifest(here)[0]["cases"]]
        assert (len(profiles), set(profiles)) == (count, {"discriminating", "tiny_values"})


def test_verify(here: Path, cli: Cli) -> None:
    golden.export("vectors", [case("v2")], gradients=False)
    outputs = right(here / "vectors")
    write_raw(here / "good", outputs)
    assert cli("golden", "verify", "vectors", "good") == (0, "pass: 1 cases with an output, 4 tensors judged\n", "")
    outputs["v2"]["out"][0, 0, 0] *= 2
    write_raw(here / "bad", outputs)
    done = cli("golden", "verify", "vectors", "bad", "--json")
    report = json.loads(done.out)
    assert done.status == 1
    assert report["status"] == report["cases"]["v2"]["tensors"]["out"]["status"] == "fail"
    done = cli("golden", "verify", "vectors", ".")
    assert done.status == 1
    assert "missing: v2: no output" in done.out


def test_every_profile_is_offered() -> None:
    assert set(PROFILES) == set(fixed.PROFILES)
