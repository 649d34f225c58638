"""Spec and recipe by flags: presets, JSON, fields over them, and dimensions that arrays have."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from refdiff.cli.check import DEFAULT_SPEC
from refdiff.cli.flags import UsageError
from refdiff.cli.parser import build_parser
from refdiff.cli.spec import PRESETS, recipe_of, spec_of
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import presets
from tests.layers.inputs import says
from tests.oracle.example_inputs import draw, small

SIZES = ["--set", "query_heads=12", "--set", "key_heads=4", "--set", "head_dim=6"]


def _args(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(["check", "--spec", DEFAULT_SPEC, *words])


def test_json_with_a_preset(tmp_path: Path) -> None:
    fields = {"preset": "ms_v1", "window": 3, "layer": 1}
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    (tmp_path / "mine").write_text(json.dumps(fields))
    expected = small("ms_v1", window=5, layer=1)
    for name in (str(tmp_path / "mine.json"), str(tmp_path / "mine"), json.dumps(fields)):
        spec, said = spec_of(_args("--spec", name, "--set", "window=5"), draw(small("ms_v1")))
        assert spec == expected
        assert said.startswith(" (query_heads 12, key_heads 4, head_dim 6: read off q, which is taken as (B, H, T, d)")
    assert spec_of(_args("--spec", name, "--layer", "7", *SIZES), None)[0].layer == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [],
            "the spec lacks query_heads, key_heads, head_dim: whole numbers of 1 or more; --set FIELD=N gives",
        ),
        (["--set", "window"], "--set window: must be FIELD=VALUE, such as window=128"),
        ([*SIZES, "--set", "window=many"], "window: got 'many', expected a whole number of keys, 0 or more, or None"),
        (["--spec", "hf_difllama"], "; did you mean hf_diffllama?"),
        (["--spec", "paper"], "or a JSON file; the preset of that variant is ms_v1"),
        (["--spec", "pipe.json"], "pipe.json: not a regular file, but a named pipe"),
        (["--spec", "typo.json", "--set", "windw=2"], "typo.json --set windw=2: "),
        (["--spec", "large.json"], "large.json is not JSON: 1e400 is beyond"),
        (["--set", 'window={"a": 1, "a": 2}'], "--set window: the key a stands twice in one object; keep one of them"),
        (["--set", "scale=1e400"], "--set scale: 1e400 is beyond the largest number"),
        (["--spec", '{"layer": 1, "layer": 2}'], "--spec is not JSON: the key layer stands twice in one object; keep"),
    ],
)
def test_invalid_specs_are_refused(words: list[str], message: str, here: Path) -> None:
    os.mkfifo("pipe.json")
    Path("typo.json").write_text('{"heads": 3}')
    Path("large.json").write_text('{"preset": "timm", "scale": 1e400}')
    with pytest.raises(UsageError, match=re.escape(message)):
        spec_of(_args(*words), None)


def test_presets() -> None:
    assert tuple(presets.PRESETS) == PRESETS


def test_small_dimensions(tmp_path: Path) -> None:
    """A preset has those of `small`; its depth too, where no file stands between."""
    assert spec_of(_args("--spec", "gda"), None, small_spec) == (small_spec("gda"), "")
    words = ["--set", "window=3", "--set", "head_dim=8", "--layer", "0"]
    assert spec_of(_args(*words), None, small_spec)[0] == small_spec("hf_diffllama").replace(
        window=3, head_dim=8, layer=0
    )
    (tmp_path / "mine").write_text(json.dumps({"preset": "timm", "scale": 0.5}))
    expected = small_spec("timm").replace(scale=0.5, layer=0)
    assert spec_of(_args("--spec", str(tmp_path / "mine")), None, small_spec)[0] == expected
    spec, _ = spec_of(_args("--spec", str(tmp_path / "mine"), "--layer", "3"), None, small_spec)
    assert spec == expected.replace(layer=3)


def test_recipes(tmp_path: Path) -> None:
    recipe = Recipe("float16", p="float32")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    assert recipe_of(str(tmp_path / "recipe.json")) == recipe
    assert recipe_of("tf32") == Recipe("float32", matmul="tf32")
    assert recipe_of("auto", {"x": np.ones(3, np.float16)}) == Recipe("float16")
    with says(UsageError, "nowhere.json: no such file"):
        recipe_of("nowhere.json")
    with pytest.raises(UsageError, match=r"\A--recipe auto, the type of q: no recipe is called 'float64': "):
        recipe_of("auto", {"q": np.ones(3)})
    mixed = {"q": np.ones(3, np.float16), "k": np.ones(3, np.float32), "v": np.ones(3, np.float16)}
    with says(UsageError, "q is float16, but k or v is float32: say with --recipe what it rounds"):
        recipe_of("auto", mixed)
    assert recipe_of("bf16", mixed) == Recipe("bfloat16")
