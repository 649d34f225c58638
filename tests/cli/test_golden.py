"""`refdiff golden`: vectors written, outputs judged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from refdiff.cli import golden as golden_command
from refdiff.cli import main
from refdiff.cli.parser import build_parser
from refdiff.cli.spec import recipe_of
from refdiff.oracle import golden
from refdiff.oracle.cases import fixed
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.golden import writing
from refdiff.oracle.golden.manifest import read_manifest
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from tests.oracle.golden.vectors import case, right, write_raw

Capture = pytest.CaptureFixture[str]
FIELDS = list(small_spec("timm").to_dict())


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
    flags = ["--spec", "diff_v2", "--dtype", "bfloat16", "-s", "3", "--npz", "--no-gradients"]
    assert main(["golden", "export", str(folder), *flags, "--profile", "tiny_values"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    manifest, changed = read_manifest(folder)
    assert changed == []
    (entry,) = manifest["cases"]
    assert (entry["profile"], entry["spec"]["lambda_form"], entry["recipe"]["storage"]) == (
        "tiny_values",
        "sigmoid",
        "bfloat16",
    )
    assert [t["name"] for t in entry["judged"]] == ["out", "lse1", "lse2", "lambda_full"]
    assert len(list(folder.glob("*.npz"))) == 1
    assert main(["golden", "export", str(folder), "--no-gradients"]) == 0
    assert [c["profile"] for c in read_manifest(folder)[0]["cases"]] == ["discriminating", "tiny_values"]


@pytest.mark.usefixtures("few")
def test_spec_and_recipe(tmp_path: Path) -> None:
    spec = Spec.preset("ms_v1", query_heads=4, key_heads=2, head_dim=8, layer=5)
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    (tmp_path / "recipe.json").write_text(json.dumps({"storage": "bfloat16", "p": "float32"}))
    words = ["golden", "export", str(tmp_path / "vectors"), "--profile", "tiny_values", "--no-gradients"]
    given = {
        ("--spec", str(tmp_path / "spec.json"), "--recipe", str(tmp_path / "recipe.json")): (spec, "bfloat16"),
        ("--spec", "ms_v1", "--layer", "0", "--recipe", "tf32"): (small_spec("ms_v1").replace(layer=0), "float32"),
        ("--recipe", "float16", "--dtype", "float32"): (small_spec("hf_diffllama"), "float32"),
        ("--dtype", "float16"): (small_spec("hf_diffllama"), "float16"),
        ("--spec", str(tmp_path / "spec.json"), "--layer", "1", "--set", "window=3"): (
            spec.replace(layer=1, window=3),
            "float32",
        ),
        ("--spec", '{"preset": "ms_v1", "window": 3}'): (small_spec("ms_v1").replace(layer=0, window=3), "float32"),
    }
    for flags, (expected, dtype) in given.items():
        assert main([*words, *flags]) == 0
        (entry,) = read_manifest(tmp_path / "vectors")[0]["cases"]
        assert Spec(**entry["spec"]) == expected
        assert next(t for t in entry["tensors"] if t["name"] == "inputs.q")["dtype"] == dtype
        name = flags[flags.index("--recipe") + 1] if "--recipe" in flags else dtype
        assert Recipe(**entry["recipe"]) == recipe_of(name)


def test_the_core_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = (Structure(1, 3, 4), Structure(1, 3, 4, hidden=8))
    monkeypatch.setattr(fixed, "PROFILES", {"discriminating": ("discriminating", of)})
    monkeypatch.setattr(fixed.Case, "blind_to", ())
    words = ["golden", "export", str(tmp_path), "--profile", "discriminating", "--no-gradients"]
    for flags, count in (([], 2), (["--core"], 1)):
        assert main([*words, *flags]) == 0
        assert len(read_manifest(tmp_path)[0]["cases"]) == count


@pytest.mark.usefixtures("few")
def test_too_large_a_case(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LARGEST_CASE", 1000)
    assert main(["golden", "export", str(tmp_path), "--profile", "tiny_values"]) == 2
    assert capsys.readouterr().err.endswith("give a smaller case, with fewer or smaller heads, or --no-gradients\n")


def test_verify(tmp_path: Path, capsys: Capture) -> None:
    vectors = tmp_path / "vectors"
    golden.export(vectors, [case("v2")], gradients=False)
    outputs = right(vectors)
    write_raw(tmp_path / "good", outputs)
    assert main(["golden", "verify", str(vectors), str(tmp_path / "good")]) == 0
    assert capsys.readouterr().out == "pass: 1 cases with an output, 4 tensors judged\n"
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
        (["export", "a", "b"], "OUTPUTS, --json: are for verify; export takes VECTORS alone"),
        (["export", "a", "--json"], "OUTPUTS, --json: are for verify; export takes VECTORS alone"),
        (["verify", "a"], "OUTPUTS: got none, expected the folder of what your program computed"),
        (
            ["verify", "a", "b", "--recipe", "tf32", "--no-gradients"],
            "--recipe, --no-gradients: are for export; verify judges by what VECTORS were written for",
        ),
        (
            ["verify", "a", "b", "--layer", "0", "--set", "window=3"],
            "--layer, --set: are for export; verify judges by what VECTORS were written for",
        ),
        (["export", os.devnull], f"VECTORS {os.devnull}: got a device or a pipe, expected a folder; name another"),
        (["export", __file__], f"VECTORS {__file__}: got a file, expected a folder; name another"),
        (["export", "a", "--spec", "b.json"], "b.json: no such file"),
        (
            ["export", "a", "--set", "windw=3"],
            "'windw' is no field of a Spec, did you mean 'window'? there are preset, " + ", ".join(FIELDS),
        ),
        (
            ["export", "a", "--recipe", "int8"],
            "--recipe int8: no recipe is called 'int8': there are float32, tf32, bfloat16, float16; or the name of a "
            "JSON file",
        ),
    ],
)
def test_usage(args: list[str], says: str, capsys: Capture) -> None:
    assert main(["golden", *args]) == 2
    assert capsys.readouterr().err == f"refdiff golden: error: {says}\n"


def test_no_vectors(tmp_path: Path, capsys: Capture) -> None:
    assert main(["golden", "verify", str(tmp_path), str(tmp_path)]) == 2
    assert "manifest.json: no such file" in capsys.readouterr().err


def test_profiles() -> None:
    assert set(golden_command.PROFILES) == set(fixed.PROFILES)


def test_defaults() -> None:
    args = vars(build_parser().parse_args(["golden", "export", "x"]))
    assert golden_command.EXPORT_DEFAULTS.items() <= args.items()
    assert (args["spec"], args["layer"], args["set"], args["recipe"]) == ("hf_diffllama", None, [], "auto")
    assert (args["profile"], args["dtype"], args["seed"]) == (None, "auto", 0)
    assert not [name for name in ("outputs", "npz", "no_gradients", "json", "core") if args[name]]


def test_a_folder_of_others_is_left_alone(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["golden", "export", str(tmp_path), "--profile", "tiny_values"]) == 2
    assert "got a folder with other files, expected a new or empty one, or vectors" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
