"""What transformers writes, refdiff loads, and the other way round: the same names, numbers, types, ties and bytes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_array_equal

from refdiff import DiffLlamaConfig
from refdiff.model.weights import ARCHITECTURES, flatten, initialize, load, resolve_dtype, save

QA = "DiffLlamaForQuestionAnswering"
CAUSAL = "DiffLlamaForCausalLM"
DTYPES = ("float32", "float64", "float16", "bfloat16")


def settings(**fields: Any) -> dict[str, Any]:
    return {
        "vocab_size": 41,
        "hidden_size": 24,
        "intermediate_size": 37,
        "num_hidden_layers": 11,  # so that layer 10 has to come after layer 9
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "num_labels": 3,
        "pad_token_id": 5,
        **fields,
    }


def made(architecture: str, dtype: str = "float32", **fields: Any) -> Any:
    """A model of transformers with random weights, biases and norms included."""
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(transformers.DiffLlamaConfig(**settings(**fields)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model.to(getattr(torch, dtype)).eval()


def written(model: Any, folder: Path, size: int | str = "5GB") -> Path:
    model.save_pretrained(folder, max_shard_size=size)
    return folder


def numbers(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.to(torch.float64).numpy() for name, tensor in model.state_dict().items()}


def result(model: Any) -> Any:
    with torch.no_grad():
        out = model(torch.tensor([[3, 1, 4, 1, 6], [9, 2, 6, 7, 3]]))
    return out[0]


def reloaded(architecture: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    model, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    return model.eval(), info


@pytest.mark.parametrize("size", ["5GB", "3KB"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_writes_what_transformers_writes(tmp_path: Path, architecture: str, dtype: str, tied: bool, size: str) -> None:
    """Every file of weights and config.json is the same byte for byte, and transformers computes the same from it."""
    made_anew = written(made(architecture, dtype, tie_word_embeddings=tied, attention_bias=True), tmp_path / "made")
    # transformers sorts the weights of a model that it has loaded, and not those of one that it has made
    model, _ = reloaded(architecture, made_anew)
    theirs = written(model, tmp_path / "theirs", size)
    config = DiffLlamaConfig.from_pretrained(theirs)
    ours = tmp_path / "ours"
    save(ours, config, load(theirs, config, architecture), architecture, dtype=dtype, max_shard_size=size)
    expected = {path.name: path.read_bytes() for path in theirs.iterdir() if path.name != "generation_config.json"}
    found = {path.name: path.read_bytes() for path in ours.iterdir()}
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    again, info = reloaded(architecture, ours)
    assert not any(info.values())
    assert again.dtype == model.dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    # torch's products differ in their last bit with where in memory the weights start
    torch.testing.assert_close(result(again), result(model))


@pytest.mark.parametrize("stored", DTYPES)
def test_rounds_as_transformers_does(tmp_path: Path, stored: str) -> None:
    """To the dtype that is asked for; "auto" is that of config.json, or else of the files."""
    written(made("DiffLlamaModel", stored), tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["dtype"]
    for dtype, named in [*((d, {}) for d in DTYPES), *(("auto", {"dtype": d}) for d in DTYPES), ("auto", {})]:
        (tmp_path / "config.json").write_text(json.dumps({**fields, **named}))
        theirs = transformers.DiffLlamaModel.from_pretrained(tmp_path, dtype=dtype)
        config = DiffLlamaConfig.from_pretrained(tmp_path)
        ours = flatten(load(tmp_path, config, "DiffLlamaModel", dtype=dtype))
        for name, values in numbers(theirs).items():
            assert_array_equal(ours[name], values)
        assert dtype != "auto" or str(theirs.dtype) == f"torch.{resolve_dtype(tmp_path, config)}"


@pytest.mark.parametrize("target", ARCHITECTURES)
@pytest.mark.parametrize("source", ARCHITECTURES)
def test_files_of_one_class_in_another(tmp_path: Path, source: str, target: str) -> None:
    model = made(source)
    written(model, tmp_path)
    theirs, info = reloaded(target, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = flatten(load(tmp_path, DiffLlamaConfig.from_pretrained(tmp_path), target))
    heads = {"lm_head.weight", "score.weight", "score.bias", "qa_outputs.weight", "qa_outputs.bias"}
    if QA in (source, target) and source != target and "DiffLlamaModel" not in (source, target):
        # transformers knows none of the names and draws the whole base model at random; refdiff does not follow it
        # there, and this is where we would hear if it did better one day
        assert set(info["missing_keys"]) == set(theirs.state_dict())
    elif source == QA and target == "DiffLlamaModel":
        assert set(info["missing_keys"]) == set(theirs.state_dict())
    else:
        drawn = set(info["missing_keys"])
        assert drawn <= heads
        assert len(caught) == bool(drawn)
        for name, values in numbers(theirs).items():
            assert name in drawn or np.array_equal(ours[name], values)
        assert all(name in str(caught[0].message) for name in drawn)
    base = {name.removeprefix("model.").removeprefix("transformer."): values for name, values in numbers(model).items()}
    for name, values in ours.items():
        short = name.removeprefix("model.").removeprefix("transformer.")
        assert short in heads or np.array_equal(values, base[short])


@pytest.mark.parametrize("case", ["neither", "equal", "different", "only lm_head"])
def test_tied_embeddings(tmp_path: Path, case: str) -> None:
    from safetensors.torch import load_file, save_file

    model = made(CAUSAL, tie_word_embeddings=True)
    written(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    embeddings = tensors["model.embed_tokens.weight"]
    if case == "equal":
        tensors["lm_head.weight"] = embeddings.clone()
    if case == "different":
        tensors["lm_head.weight"] = embeddings + 1
    if case == "only lm_head":
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, _ = reloaded(CAUSAL, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = flatten(load(tmp_path, DiffLlamaConfig.from_pretrained(tmp_path), CAUSAL))
    assert len(caught) == (case == "different")
    embedded, output = theirs.model.embed_tokens.weight, theirs.lm_head.weight
    assert_array_equal(ours["model.embed_tokens.weight"], embedded.detach().numpy())
    assert_array_equal(ours.get("lm_head.weight", ours["model.embed_tokens.weight"]), output.detach().numpy())
    assert ("lm_head.weight" in ours) == (embedded is not output) == (case == "different")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_weights_follow_the_same_law(architecture: str) -> None:
    fields = settings(
        hidden_size=192, head_dim=96, num_hidden_layers=2, attention_bias=True, initializer_range=0.3,
        lambda_std_dev=0.7, hidden_act="prelu",
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = numbers(getattr(transformers, architecture)(transformers.DiffLlamaConfig(**fields)))
    ours = flatten(initialize(DiffLlamaConfig(**fields), architecture))
    for name, values in theirs.items():
        if not values.std():
            assert_array_equal(ours[name], values)
        else:
            spread = 5 / np.sqrt(2 * values.size)  # five standard deviations of an estimate of a spread
            assert ours[name].std() / values.std() == pytest.approx(1, abs=2 * spread)
            assert abs(ours[name].mean()) < 5 * values.std() / np.sqrt(values.size)
        assert_array_equal(ours[name] == 0, values == 0)  # the padding token's embedding
