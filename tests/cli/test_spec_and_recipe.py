"""A name or a JSON file → a spec, a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refdiff.cli.flags import UsageError
from refdiff.cli.spec_and_recipe import recipe_of, spec_of
from refdiff.oracle.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.strategies.fixed import small_spec
from tests.layers.inputs import says


def test_names(tmp_path: Path) -> None:
    assert spec_of("gda", small_spec) == small_spec("gda")
    assert recipe_of("tf32") == Recipe("float32", matmul="tf32")
    spec, recipe = small_spec("timm"), Recipe("float16", p="float32")
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    assert spec_of(str(tmp_path / "spec.json"), small_spec) == spec
    assert recipe_of(str(tmp_path / "recipe.json")) == recipe


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"heads": 3, "query_heads": 4},
            "there is no field heads; there are query_heads, key_heads, head_dim, layer, ",
        ),
        ({"query_heads": 4}, "Spec.__init__() missing 2 required keyword-only arguments: 'key_heads' and 'head_dim'"),
        ({"query_heads": 3, "key_heads": 1, "head_dim": 8}, "query_heads"),
        ({"query_heads": "4", "key_heads": 2, "head_dim": 8}, "'4'"),
    ],
)
def test_files_that_are_no_spec(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(UsageError) as found:
        spec_of(str(path), small_spec)
    assert str(found.value).startswith(f"{path}: ")
    assert message in str(found.value)


def test_neither() -> None:
    with says(
        UsageError,
        "--spec llama: there are hf_diffllama, ms_v1, ms_v1_naive, timm, phi4flash, motif, diff_v2, "
        "gda, or the name of a JSON file",
    ):
        spec_of("llama", Spec.preset)
    with says(UsageError, "nowhere.json: No such file or directory"):
        recipe_of("nowhere.json")
