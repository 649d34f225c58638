"""A folder → the parameters of any class: names, types, ties, heads, and every problem in one message."""

from __future__ import annotations

import importlib
import mmap
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from refdiff import CheckpointError
from refdiff.arrays import Deferred, to_numpy
from refdiff.model.weights import ARCHITECTURES, flatten, load, nonfinite, resolve_dtype
from refdiff.model.weights.folder import SINGLE
from refdiff.model.weights.precision import STORED
from tests.model.weights.files import (
    ARRAY_TYPES,
    Stored,
    array,
    pack,
    random_tensors,
    shapes_of,
    split,
    stored,
    tiny_config,
    write,
)

CAUSAL = "DiffLlamaForCausalLM"


def base_of(name: str) -> str:
    return name.removeprefix("model.").removeprefix("transformer.")


def put(folder: Path, tensors: dict[str, Stored]) -> Path:
    return write(folder, {SINGLE: pack(tensors)})


def refused(folder: Path, architecture: str = CAUSAL, **fields: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, tiny_config(**fields), architecture)
    return str(caught.value)


def memory_of(values: Any) -> Any:
    """The object that owns an array's memory."""
    while isinstance(values, np.ndarray):
        values = values.base
    return values.obj if isinstance(values, memoryview) else values


# ---- values


@pytest.mark.parametrize("shards", [0, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_class_gets_its_values(tmp_path: Path, architecture: str, shards: int) -> None:
    tensors = random_tensors(architecture)
    write(tmp_path, split(tensors, shards) if shards else {SINGLE: pack(tensors)})
    loaded = flatten(load(tmp_path, tiny_config(), architecture))
    assert list(loaded) == list(shapes_of(architecture))
    for name, values in loaded.items():
        assert_array_equal(values, array(tensors[name]), strict=False)
        assert values.dtype == np.float32
        assert not values.flags.writeable


@pytest.mark.parametrize(("name", "dtype"), [("F32", "float32"), ("F64", "float64")])
def test_stored_as_wanted_is_not_copied(tmp_path: Path, name: str, dtype: str) -> None:
    put(tmp_path, random_tensors(dtype=name))
    owners = {id(memory_of(v)) for v in flatten(load(tmp_path, tiny_config(), CAUSAL, dtype=dtype)).values()}
    assert len(owners) == 1
    values = load(tmp_path, tiny_config(), CAUSAL, dtype=dtype)["lm_head"]["weight"]
    assert isinstance(memory_of(values), mmap.mmap)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ARRAY_TYPES)
def test_every_pair_of_types(tmp_path: Path, name: str, dtype: str) -> None:
    """At once, later when they are used, and with matrices kept in 16 bits."""
    tensors = random_tensors(dtype=name)
    put(tmp_path, tensors)
    now, later, sixteen = (
        flatten(load(tmp_path, tiny_config(), CAUSAL, dtype=dtype, **options))
        for options in ({}, {"deferred": True}, {"deferred": True, "stored": True})
    )
    assert list(now) == list(later) == list(sixteen)
    wanted = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}
    for key, values in now.items():
        assert_array_equal(values, array(tensors[key]).astype(np.float32).astype(wanted[dtype]).astype(np.float64))
        assert values.dtype == (np.float64 if dtype == "float64" else np.float32)
        assert isinstance(later[key], Deferred)
        assert (later[key].shape, later[key].dtype) == (values.shape, values.dtype)
        assert_array_equal(to_numpy(later[key]), values)
        assert not values.flags.writeable
        assert not to_numpy(later[key]).flags.writeable
        assert_array_equal(to_numpy(sixteen[key]).astype(values.dtype), values)
    assert isinstance(sixteen["lm_head.weight"], np.ndarray) == (
        name[-2:] == "16" and dtype in (STORED[name], "float32", "float64")
    )


@pytest.mark.parametrize(
    ("dtype", "config_dtype", "name", "resolved"),
    [
        ("auto", None, "BF16", "bfloat16"),
        ("auto", None, "F64", "float64"),
        ("auto", "float32", "BF16", "float32"),
        ("auto", "bfloat16", "F32", "bfloat16"),
        ("float16", "bfloat16", "F32", "float16"),
    ],
)
def test_which_precision(tmp_path: Path, dtype: str, config_dtype: str | None, name: str, resolved: str) -> None:
    put(tmp_path, random_tensors(dtype=name))
    config = tiny_config(dtype=config_dtype)
    assert resolve_dtype(tmp_path, config, dtype) == resolved
    loaded = load(tmp_path, config, CAUSAL, dtype=dtype)["lm_head"]["weight"]
    assert_array_equal(loaded, load(tmp_path, config, CAUSAL, dtype=resolved)["lm_head"]["weight"])


def test_a_precision_that_is_none_is_refused(tmp_path: Path) -> None:
    put(tmp_path, random_tensors())
    for resolve in (partial(resolve_dtype, tmp_path, tiny_config()), partial(load, tmp_path, tiny_config(), CAUSAL)):
        with pytest.raises(ValueError, match=r"^dtype: got 'int8', expected one of auto, float32, "):
            resolve(dtype="int8")


def test_the_precision_of_files_without_weights(tmp_path: Path) -> None:
    put(tmp_path, {"x": Stored("I32", (3,), bytes(12))})
    assert resolve_dtype(tmp_path, tiny_config(dtype=None)) == "float32"


# ---- the files of one class in another


@pytest.mark.parametrize("target", ARCHITECTURES)
@pytest.mark.parametrize("source", ARCHITECTURES)
def test_any_class_takes_the_base_model_of_any_other(tmp_path: Path, source: str, target: str) -> None:
    tensors = random_tensors(source)
    put(tmp_path, tensors)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = flatten(load(tmp_path, tiny_config(), target))
    assert list(loaded) == list(shapes_of(target))
    by_base = {base_of(name): tensor for name, tensor in tensors.items()}
    drawn = [name for name in loaded if base_of(name) not in by_base]
    for name, values in loaded.items():
        if name not in drawn:
            assert_array_equal(values, array(by_base[base_of(name)]))
    assert len(caught) == bool(drawn)
    if drawn:
        assert f"no {' and '.join(drawn)} in the files: drawn at random" in str(caught[0].message)
        assert caught[0].filename == __file__
        assert all((loaded[name] == 0).all() == name.endswith("bias") for name in drawn)


def test_a_head_is_not_drawn_larger_than_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("refdiff.model.weights.load"), "ALWAYS_DRAWN", 600)
    put(tmp_path, random_tensors("DiffLlamaModel"))
    fits, too_many = tiny_config(num_labels=100), tiny_config(num_labels=1000)
    with pytest.warns(UserWarning, match="drawn at random"):
        load(tmp_path, fits, "DiffLlamaForSequenceClassification")
    with pytest.raises(CheckpointError, match=r"score\.weight of shape \(1000, 6\) is not in the files, and 6,000 new"):
        load(tmp_path, too_many, "DiffLlamaForSequenceClassification")


@pytest.mark.parametrize("name", ["model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq"])
def test_frequencies_of_old_files_are_passed_over(tmp_path: Path, name: str) -> None:
    put(tmp_path, {**random_tensors(), name: stored(np.ones(1))})
    assert name not in flatten(load(tmp_path, tiny_config(), CAUSAL))


# ---- tied embeddings


def tied(tmp_path: Path, tensors: dict[str, Stored], architecture: str = CAUSAL) -> dict[str, Any]:
    return flatten(load(put(tmp_path, tensors), tiny_config(tie_word_embeddings=True), architecture))


def test_tied_without_a_matrix_of_its_own(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["lm_head.weight"]
    assert list(tied(tmp_path, tensors)) == list(tensors)


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("rows", [7, 3000])
def test_tied_with_an_equal_matrix(tmp_path: Path, rows: int, deferred: bool) -> None:
    tensors = random_tensors()
    values = np.random.default_rng(0).standard_normal((rows, 6))
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"] = stored(values)
    config = tiny_config(tie_word_embeddings=True, vocab_size=rows)
    assert "lm_head.weight" not in flatten(load(put(tmp_path, tensors), config, CAUSAL, deferred=deferred))
    for row in (0, 1024 % rows, -1):  # one number in it
        other = values.copy()
        other[row, -1] += 1
        tensors["lm_head.weight"] = stored(other)
        put(tmp_path, tensors)
        with pytest.warns(UserWarning, match=r"stored with values of its own, .*tie_word_embeddings should be false$"):
            assert "lm_head.weight" in flatten(load(tmp_path, config, CAUSAL, deferred=deferred))


def test_tied_with_nothing_but_the_output_matrix(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["model.embed_tokens.weight"]
    loaded = tied(tmp_path, tensors)
    assert_array_equal(loaded["model.embed_tokens.weight"], array(tensors["lm_head.weight"]))
    assert "lm_head.weight" not in loaded


# ---- problems


def test_all_problems_in_one_message(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = stored(np.zeros((6, 5)))
    tensors["model.layers.0.mlp.down_proj.weight"] = Stored("I64", (6, 5), bytes(240))
    tensors["model.layers.0.self_attn.lambda_q1"] = Stored("F8_E4M3", (3,), bytes(3))
    tensors["model.layers.1.mlp.up_proj.weight"] = stored(np.zeros((5, 6)))
    tensors["embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    lines = refused(put(tmp_path, tensors)).splitlines()
    assert lines[0] == f"{tmp_path / SINGLE}: 8 problems:"
    where = f"in '{SINGLE}'"
    assert sorted(lines[1:]) == sorted(
        [
            "  num_hidden_layers is 1, but there are tensors of 2 layers",
            f"  'model.layers.0.mlp.up_proj.weight' {where}: shape is (6, 5), but config.json makes it (5, 6)",
            f"  'model.layers.0.mlp.down_proj.weight' {where}: dtype is I64, but weights are F32, F64, F16, BF16",
            f"  'model.layers.0.self_attn.lambda_q1' {where}: shape is (3,), but config.json makes it (2,)",
            f"  'model.layers.0.self_attn.lambda_q1' {where}: dtype is F8_E4M3, but weights are F32, F64, F16, BF16",
            f"  'model.layers.1.mlp.up_proj.weight' {where}: no parameter of a {CAUSAL} with this config.json",
            f"  'embed_tokens.weight' {where}: the same parameter as 'model.embed_tokens.weight' {where}",
            "  'model.norm.weight' of shape (6,) is missing",
        ]
    )


def test_more_layers_than_tensors(tmp_path: Path) -> None:
    put(tmp_path, random_tensors())
    message = refused(tmp_path, num_hidden_layers=9_999)
    assert "9999 layers" in message
    assert "16 tensors" in message
    assert "0 tensors" in refused(put(tmp_path / "empty", {}))
    assert "missing" in refused(tmp_path, num_hidden_layers=16)  # as many could be layers' norms: each is named


# ---- values that are no numbers


def test_values_that_are_no_numbers_load_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors()
    tensors["model.norm.weight"] = stored(np.array([np.nan, np.inf, -np.inf, 1, 2, 3]))
    params = load(put(tmp_path, tensors), tiny_config(), CAUSAL)
    assert_array_equal(params["model"]["norm"]["weight"], [np.nan, np.inf, -np.inf, 1, 2, 3])
    assert nonfinite(params) == {"model.norm.weight": 3}
    assert nonfinite(params["lm_head"]) == {}
    # counted step by step where there are many
    monkeypatch.setattr(importlib.import_module("refdiff.model.weights.load"), "TILE", 2)
    assert nonfinite(params) == {"model.norm.weight": 3}


def test_rounding_to_less_range_is_reported(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors["model.norm.weight"] = stored(np.full(6, -1e6))
    tensors["model.layers.0.input_layernorm.weight"] = stored(np.full(6, np.nan))
    put(tmp_path, tensors)
    with pytest.warns(UserWarning, match=r"rounded to float16, model\.norm\.weight have infinite values; float32 has"):
        loaded = load(tmp_path, tiny_config(), CAUSAL, dtype="float16")
    assert_array_equal(loaded["model"]["norm"]["weight"], -np.inf)
    for dtype in ("bfloat16", "float32", "float64"):
        load(tmp_path, tiny_config(), CAUSAL, dtype=dtype)


@pytest.mark.parametrize("stored", [True, False])
def test_files_that_are_read_whole_may_be_cut_short_later(tmp_path: Path, stored: bool) -> None:
    tensors = random_tensors(dtype="BF16")
    put(tmp_path, tensors)
    expected = flatten(load(tmp_path, tiny_config(), "DiffLlamaForCausalLM", stored=stored))
    kept = {name: np.array(values, copy=True) for name, values in expected.items()}
    loaded = flatten(load(tmp_path, tiny_config(), "DiffLlamaForCausalLM", stored=stored, mapped=False))
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name, values in loaded.items():
        assert_array_equal(np.array(values), kept[name])
        assert not values.flags.writeable
