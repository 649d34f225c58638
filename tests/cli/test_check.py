"""`refdiff check`: a file in, an exit status out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.cli.check import inputs_page
from refdiff.oracle import Recipe
from refdiff.oracle.inputs.arrays import write_arrays
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth import truth
from tests.oracle.example_inputs import draw, small

from .conftest import Cli

Write = Callable[..., Path]


@pytest.fixture
def mine(tmp_path: Path) -> Write:
    """Write a file with inputs and right outputs."""

    def write(spec: Spec, dtype: Any = np.float32, **changes: Any) -> Path:
        x = draw(spec, dtype=dtype)
        found = truth(spec, x)
        out = {"out": found.out.astype(dtype), "lse1": found.lse1.astype(np.float32)}
        write_arrays(tmp_path / "mine.safetensors", {**x, **out, **changes}, {})
        return tmp_path / "mine.safetensors"

    return write


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_correct_output_passes(dtype: Any, mine: Write, cli: Cli) -> None:
    done = cli("check", "--layer", "2", mine(small("hf_diffllama"), dtype))
    assert done.status == 0
    assert done.out.startswith(f"pass, judged as {np.dtype(dtype).name}")
    assert "lse1         pass" in done.out


def test_spec_and_recipe_of_the_files_header(tmp_path: Path, cli: Cli) -> None:
    spec = small("ms_v1").replace(window=3, layer=5)
    x = draw(spec, dtype=np.float32)
    header = {"spec": json.dumps(spec.to_dict()), "recipe": json.dumps(Recipe.of("tf32").to_dict())}
    file = tmp_path / "mine.safetensors"
    write_arrays(file, {**x, "out": truth(spec, x).out.astype(np.float32)}, header)
    done = cli("check", file)
    assert (done.status, done.out.partition(";")[0]) == (0, "pass, judged as float32 matmul=tf32")
    assert cli("check", "--spec", "ms_v1", "--recipe", "float32", file).out.startswith("fail, judged as float32")
    write_arrays(file, x | {"out": x["q"]}, {"recipe": "{"})
    assert "--recipe is not JSON" in cli("check", file).err


def test_a_mistake_is_named_on_request(mine: Write, cli: Cli) -> None:
    file, hint = mine(small("ms_v1")), "\n--diagnose names the mistake\n"
    for layer, status in ((3, 1), (2, 0)):
        done = cli("check", "--spec", "ms_v1", "--layer", layer, file)
        assert (done.status, done.out.endswith(hint)) == (status, status == 1)
        assert "λ_init" not in done.out
    assert cli("check", "--spec", "ms_v1", file).out.endswith(
        "\nλ_init is that of layer 0; --layer names another" + hint
    )
    done = cli("check", "--spec", "ms_v1", "--layer", "3", "--json", "--diagnose", file)
    report = json.loads(done.out)
    assert (done.status, report["status"], report["spec"]["layer"]) == (1, "fail", 3)
    assert [report["tensors"][name]["status"] for name in ("out", "lse1")] == ["fail", "pass"]
    assert report["diagnosis"]["status"] in ("unique", "ambiguous")


def test_gradients_npz_and_json_files(here: Path, cli: Cli) -> None:
    spec = small("diff_v2", rope="none")
    x = draw(spec, dtype=np.float32)
    dout = np.ones((2, spec.heads, 5, spec.out_dim), dtype=np.float32)
    grads = truth(spec, x, dout=dout).grads
    np.savez("mine.npz", **x, dout=dout, dv=grads["v"], dlambda_logits=grads["lambda_logits"])
    np.savez("wrong.npz", **x, dout=dout, dv=2 * grads["v"])
    (here / "spec.json").write_text(json.dumps(spec.to_dict()))
    (here / "recipe.json").write_text(json.dumps({"storage": "float32", "matmul": "tf32"}))
    words = ("check", "--spec", "spec.json", "--recipe", "recipe.json")
    assert json.loads(cli(*words, "mine.npz", "--print-spec").out) == spec.to_dict()
    done = cli(*words, "mine.npz")
    assert done.status == 0
    assert "judged as float32 matmul=tf32" in done.out
    assert cli(*words, "wrong.npz").status == 1


def test_a_preset_is_printed_without_a_file(cli: Cli) -> None:
    done = cli("check", "--print-spec", "--spec", "gda", "--set", "window=7", "--layer", "3")
    whole = small("gda", window=7, layer=3).to_dict()
    dimensions = {"query_heads", "key_heads", "head_dim"}
    assert json.loads(done.out) == {field: value for field, value in whole.items() if field not in dimensions}


def test_an_inconclusive_verdict_is_no_pass(mine: Write, cli: Cli) -> None:
    spec = small("hf_diffllama")
    nan = np.full_like(draw(spec, dtype=np.float32)["q"], np.nan)
    out, lse1 = (np.full(shape, np.nan, np.float32) for shape in ((2, 6, 5, 12), (2, 6, 5)))
    done = cli("check", mine(spec, q=nan, out=out, lse1=lse1))
    assert done.status == 1
    assert "inconclusive" in done.out
    assert "NaN or infinities in the inputs: q has 720 of 720" in done.out


def test_a_wrong_gradient_is_diagnosed_too(mine: Write, cli: Cli) -> None:
    spec = small("ms_v1")
    x = draw(spec, dtype=np.float32)
    dout = np.ones_like(truth(spec, x).out, dtype=np.float32)
    file = mine(spec, dout=dout, dk=2 * truth(spec, x, dout=dout).grads["k"].astype(np.float32))
    done = cli("check", "--spec", "ms_v1", "--layer", spec.layer, "--json", "--diagnose", file)
    assert done.status == 1
    assert list(json.loads(done.out)["tensors"]) == ["out", "lse1", "dk"], "the output comes first"
    assert json.loads(done.out)["diagnosis"]["name"] == "factor of dk = 2"


@pytest.mark.slow
def test_verdicts_and_the_page_of_inputs_fit_80_columns(mine: Write, cli: Cli) -> None:
    spec = small("hf_diffllama")
    out = truth(spec, draw(spec, dtype=np.float32)).out.astype(np.float32)
    done = cli("check", "--diagnose", "--layer", "2", mine(spec, out=2 * out, lse2=out[..., 0].copy()))
    assert done.status == 1
    assert "diagnosis: " in done.out
    assert max(len(line) for line in done.out.splitlines() if "https://" not in line) <= 80
    page = cli("check", "--inputs").out
    assert page == inputs_page() + "\n"
    assert max(map(len, page.splitlines())) <= 80
    assert all(name in page for name in ("lambda_logits", "block_table", "o_proj.weight", "dlambda_q1"))
