"""`refdiff inspect`: what it says of a checkpoint, and that it reads next to nothing of it."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import refdiff
from refdiff.cli.inspect import describe
from refdiff.model.weights import parameter_shapes

from .conftest import Cli


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def change_tensors(folder: Path, **arrays: Any) -> None:
    """Put arrays into the weights; None takes one away."""
    stored = {**load_file(folder / "model.safetensors"), **arrays}
    save_file({name: x for name, x in stored.items() if x is not None}, folder / "model.safetensors")


def test_the_report_as_json(tiny_checkpoint: Path, cli: Cli) -> None:
    done = cli("inspect", "--json", tiny_checkpoint)
    report, stored = json.loads(done.out), load_file(tiny_checkpoint / "model.safetensors")
    assert (done.status, report["problems"], report["checkpoint"]) == (0, [], str(tiny_checkpoint))
    assert (report["architecture"], report["dtype"]) == ("DiffLlamaForCausalLM", "float32")
    assert report["parameters"] == sum(a.size for a in stored.values())
    assert report["config"]["hidden_size"] == 24
    assert {name: (t["shape"], t["bytes"]) for name, t in report["tensors"].items()} == {
        name: (list(a.shape), a.nbytes) for name, a in stored.items()
    }
    files = {file["name"]: (file["tensors"], file["bytes"]) for file in report["files"]}
    assert files["model.safetensors"] == (len(stored), (tiny_checkpoint / "model.safetensors").stat().st_size)


def test_a_llama_is_called_one(folder: Path) -> None:
    change_config(folder, model_type="llama", architectures=["LlamaForTokenClassification"])
    report = describe(folder)
    assert report["architecture"] == "LlamaForTokenClassification"
    unknown = "'model.layers.0.self_attn.lambda_q1' in 'model.safetensors'"
    assert f"{unknown}: no parameter of a LlamaForTokenClassification with this config.json" in report["problems"]


def test_lambdas_are_those_of_the_model(tiny_checkpoint: Path) -> None:
    lambdas = describe(tiny_checkpoint)["lambdas"]
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype="float64")
    expected = [float(x) for x in model([[0, 5]], output_attentions=True).lambdas]
    assert [entry["layer"] for entry in lambdas] == [0, 1]
    np.testing.assert_allclose([entry["lambda"] for entry in lambdas], expected, rtol=1e-12)
    starts = [0.8 - 0.6 * math.exp(-0.3 * layer) for layer in (0, 1)]
    np.testing.assert_allclose([entry["lambda_init"] for entry in lambdas], starts, rtol=1e-15)


@pytest.mark.parametrize(("dtype", "mapped"), [("float32", True), ("bfloat16", False)])
def test_memory(dtype: str, mapped: bool, tmp_path: Path, cli: Cli) -> None:
    config = refdiff.DiffLlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=6, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, max_position_embeddings=100,
    )  # fmt: skip
    model = refdiff.DiffLlamaForCausalLM.from_config(config)
    model.save_pretrained(tmp_path, dtype=dtype)
    report = describe(tmp_path)
    memory = report["memory"]
    assert report["dtype"] == dtype
    assert memory["weights"] == 4 * model.num_parameters()
    assert memory["stored"] == (4 if mapped else 2) * model.num_parameters()
    assert memory["mapped"] == (memory["stored"] if mapped else 0)
    assert memory["kv_cache_per_1000_tokens"] == 1000 * 3 * 2 * 2 * 4 * 4
    assert ("mapped from the files" if mapped else "expanded when loaded") in cli("inspect", tmp_path).out


def test_weights_that_do_not_fit_the_config_are_listed_with_status_1(folder: Path, cli: Cli) -> None:
    change_tensors(
        folder,
        **{
            "model.norm.weight": None,
            "model.layers.0.self_attn.q_proj.weight": np.zeros((3, 24), dtype=np.float32),
            "model.layers.7.extra": np.zeros(3, dtype=np.float32),
            "model.layers.1.self_attn.lambda_q1": np.zeros(5, dtype=np.float32),
        },
    )
    done = cli("inspect", folder)
    assert done.status == 1
    q_proj = "'model.layers.0.self_attn.q_proj.weight' in 'model.safetensors'"
    extra = "'model.layers.7.extra' in 'model.safetensors'"
    assert "'model.norm.weight' of shape (24,) is missing" in done.out
    assert f"{q_proj}: shape is (3, 24), but config.json makes it (32, 24)" in done.out
    assert f"{extra}: no parameter of a DiffLlamaForCausalLM with this config.json" in done.out
    assert [entry["layer"] for entry in describe(folder)["lambdas"]] == [0]  # layer 1 has four of unequal length


def test_another_number_of_layers_comes_first_of_a_few_problems(folder: Path, cli: Cli) -> None:
    change_config(folder, num_hidden_layers=9)
    with pytest.raises(refdiff.CheckpointError) as error:
        refdiff.DiffLlamaModel.from_pretrained(folder)
    cause = "  num_hidden_layers is 9, but there are tensors of 2 layers"
    assert str(error.value).splitlines()[1] == cause
    shown = cli("inspect", folder).out.partition("\nproblems\n")[2].splitlines()
    count = len(json.loads(cli("inspect", "--json", folder).out)["problems"])
    assert (shown[0], len(shown), shown[-1]) == (cause, 21, f"  and {count - 20} more; --json has all")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="files with holes are made differently there")
def test_the_weights_are_not_read(tmp_path: Path) -> None:
    """A checkpoint of 1.24 billion parameters that is one large hole: its size is read, its content is not."""
    config = refdiff.DiffLlamaConfig(vocab_size=128256, num_key_value_heads=8, tie_word_embeddings=True)
    config.save_pretrained(tmp_path)
    entries: dict[str, Any] = {}
    at = 0
    for name, shape in parameter_shapes(config, "DiffLlamaForCausalLM").items():
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * math.prod(shape)]}
        at += 4 * math.prod(shape)
    header = json.dumps(entries).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
    report = describe(tmp_path)
    assert (report["parameters"], report["memory"]["mapped"], len(report["lambdas"])) == (1_235_818_496, at, 16)


def test_lambda_vectors_of_gigabytes_are_not_read(folder: Path, cli: Cli) -> None:
    long = np.zeros(300_000, np.float32)
    named = load_file(folder / "model.safetensors")
    change_tensors(folder, **{name: long for name in named if ".lambda_" in name})
    done = cli("inspect", "--json", folder)
    assert (done.status, json.loads(done.out)["lambdas"]) == (1, [])
