"""Our config against transformers' over generated files: the same fields, whoever wrote and whoever reads the file."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.activations import ACT2CLS

from refdiff.model.config import DiffLlamaConfig
from refdiff.model.config_checks import ACTIVATIONS
from tests.parity.checkpoints import recipes

FIELDS = [entry.name for entry in dataclasses.fields(DiffLlamaConfig) if entry.name not in ("extra", "variant")]
RECIPES = recipes()
SPELLINGS = ("rope_parameters", "rope_scaling type", "rope_scaling rope_type", "both")


def one_of(rng: random.Random, *choices: dict[str, Any]) -> dict[str, Any]:
    return rng.choice(choices)


def random_file(seed: int) -> dict[str, Any]:
    """The content of one config.json, of a checkpoint's recipe, in one of the spellings that published files use."""
    rng, recipe = random.Random(seed), RECIPES[seed % len(RECIPES)]
    content: dict[str, Any] = {"model_type": "diffllama", "architectures": [recipe.architecture], **recipe.config}
    content |= {"transformers_version": "4.46.0.dev0", "eos_token_id": rng.choice([2, [2, 5], None])}
    if content["num_attention_heads"] == content["num_key_value_heads"] and rng.random() < 0.7:
        content["num_key_value_heads"] = None
        if rng.random() < 0.5:
            del content["num_key_value_heads"]
    content |= one_of(
        rng, {}, {"torch_dtype": "bfloat16"}, {"dtype": "float16"}, {"dtype": "float64", "torch_dtype": "half"}
    )
    content |= one_of(
        rng,
        {},
        {"num_labels": 5},
        {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}},
        {"id2label": {"1": "b", "0": "a", "2": "c"}, "num_labels": 3},
        {"id2label": {"0": "a"}, "num_labels": 4, "problem_type": "multi_label_classification"},
        {"problem_type": "regression", "num_labels": 1},
    )
    content |= one_of(rng, {}, {"max_length": 20, "temperature": 0.5}, {"pretraining_tp": 1, "mlp_bias": False})
    rope = {  # whole numbers too
        name: int(x) if x in (2.0, 4.0) and rng.random() < 0.5 else x
        for name, x in content.pop("rope_parameters").items()
    }
    theta = one_of(rng, {}, {"rope_theta": rope.pop("rope_theta")}, {"rope_theta": 10000})
    spelling = rng.choice(SPELLINGS)
    if spelling == "rope_parameters":
        content["rope_parameters"] = {**rope, **theta}
        content |= one_of(rng, {}, {"rope_theta": 123.0}, {"rope_scaling": None})
    else:
        kind = rope.pop("rope_type")
        content["rope_scaling"] = {**rope, "type" if spelling == "rope_scaling type" else "rope_type": kind}
        content |= theta
        if spelling == "both":
            content["rope_parameters"] = {"rope_type": "linear", "factor": 7.0, "rope_theta": 77.0}
    if recipe.config["rope_parameters"]["rope_type"] in ("yarn", "longrope", "llama3") and rng.random() < 0.2:
        content["original_max_position_embeddings"] = content["max_position_embeddings"] // 4
    return content


def read_ours(folder: Path) -> DiffLlamaConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return DiffLlamaConfig.from_pretrained(folder)


def read_theirs(folder: Path) -> Any:
    config = transformers.DiffLlamaConfig.from_pretrained(folder)
    # Every rope function of transformers does this first, so that it is what the model computes with.
    config.standardize_rope_params()
    return config


def comparable(values: dict[str, Any]) -> dict[str, Any]:
    """Drop what transformers overwrites with its own version, and where it keeps a file's path."""
    return {name: value for name, value in values.items() if name not in ("transformers_version", "_name_or_path")}


@pytest.mark.parametrize("seed", range(100))
def test_same_fields_whoever_writes_and_reads(seed: int, tmp_path: Path) -> None:
    content = random_file(seed)
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    first.mkdir()
    (first / "config.json").write_text(json.dumps(content))
    ours, theirs = read_ours(first), read_theirs(first)

    expected = theirs.to_dict()
    ours_dict = ours.to_dict()
    assert ours.num_labels == theirs.num_labels
    assert {name: ours_dict[name] for name in FIELDS} == {name: expected[name] for name in FIELDS}
    diff = theirs.to_diff_dict()
    assert {name: diff.get(name, "absent") for name in FIELDS} == {
        name: ours.to_diff_dict().get(name, "absent") for name in FIELDS
    }

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ours.save_pretrained(second)
    assert comparable(read_theirs(second).to_dict()) == comparable(expected)
    assert read_ours(second) == ours

    theirs.save_pretrained(third)
    again = read_ours(third)
    again.extra = ours.extra
    assert again == ours


def test_defaults_are_those_of_transformers() -> None:
    expected = transformers.DiffLlamaConfig().to_dict()
    ours = DiffLlamaConfig().to_dict()
    missing = {"transformers_version", "output_hidden_states", "output_attentions", "return_dict"}
    missing |= {"chunk_size_feed_forward", "is_encoder_decoder", "_name_or_path"}
    assert ours == {name: value for name, value in expected.items() if name not in missing}


def test_every_activation_but_xielu_is_accepted() -> None:
    assert set(ACTIVATIONS) == set(ACT2CLS) - {"xielu"}


def test_fields_that_no_diffllama_has_are_attributes(tmp_path: Path) -> None:
    """Given to the constructor, by `update` or set, before and after the config is saved."""
    for cls in (transformers.DiffLlamaConfig, DiffLlamaConfig):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # refdiff names fields that it does not know
            config = cls(mine={"a": 1})
        config.update({"more": 2})
        config.set_later = [3]
        config.save_pretrained(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = cls.from_pretrained(tmp_path)
        for one in (config, again, copy.deepcopy(config)):
            assert (one.mine, one.more, one.set_later) == ({"a": 1}, 2, [3])
            assert getattr(one, "absent", 5) == 5


def test_options_of_from_dict_are_fields_to_change() -> None:
    content = {"hidden_size": 64, "id2label": {"0": "a"}, "label2id": {"a": 0}}
    changes: dict[str, Any] = {"num_labels": 3, "hidden_act": "gelu", "hidden_size": 32}
    theirs, ours = (cls.from_dict(content, **changes) for cls in (transformers.DiffLlamaConfig, DiffLlamaConfig))
    for name in (*changes, "id2label", "label2id"):
        assert getattr(ours, name) == getattr(theirs, name)
    with pytest.raises(
        TypeError, match=r"DiffLlamaConfig.from_dict: got an unexpected argument 'zzz', expected any of"
    ):
        DiffLlamaConfig.from_dict(content, zzz=1)
