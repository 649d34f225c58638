"""`weights="stored"`: 16-bit matrices stay in the file, and the model computes what it computes with expanded ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import array_api_strict
import ml_dtypes
import numpy as np
import pytest

import refdiff
from refdiff import backends
from refdiff.backends import Backend
from refdiff.bench.processes import child
from refdiff.bench.rows import BenchRow
from refdiff.bench.sides import BenchSettings
from refdiff.model import pretrained
from refdiff.model.weights import flatten
from tests.model.models import small_config

CONFIG = small_config(initializer_range=0.02)
IDS = np.array([[5, 17, 3, 11, 2], [7, 1, 13, 19, 23]])


@pytest.fixture(params=["bfloat16", "float16"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    refdiff.DiffLlamaForCausalLM.from_config(CONFIG, 3, dtype=request.param).save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path, **options: Any) -> refdiff.DiffLlamaForCausalLM:
    return refdiff.DiffLlamaForCausalLM.from_pretrained(folder, **options)


def test_matrices_are_kept_in_16_bits_and_the_rest_is_expanded(folder: Path) -> None:
    model = load(folder, weights="stored")
    kinds = {name: a.dtype for name, a in flatten(model.params).items()}
    kept = np.dtype(ml_dtypes.bfloat16) if model.dtype == "bfloat16" else np.dtype(np.float16)
    assert {kind for name, kind in kinds.items() if name.endswith(("_proj.weight", "embed_tokens.weight"))} == {kept}
    assert kinds["lm_head.weight"] == kept
    assert {kind for name, kind in kinds.items() if "norm" in name or "lambda" in name} == {np.dtype(np.float32)}
    for array in flatten(model.params).values():
        assert not array.flags.writeable
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        assert array.ndim < 2 or owner.base is not None  # a view of the file, not an array of its own


def test_the_map_of_lambda_is_expanded_too(tmp_path: Path) -> None:
    """A projection by its name, but not one that stays."""
    config = small_config(initializer_range=0.02, variant="v2")
    refdiff.DiffLlamaForCausalLM.from_config(config, 3, dtype="bfloat16").save_pretrained(tmp_path)
    model = load(tmp_path, weights="stored")
    kinds = {name: a.dtype.itemsize for name, a in flatten(model.params).items() if name.endswith("_proj.weight")}
    assert {size for name, size in kinds.items() if "lambda_proj" in name} == {4}
    assert {size for name, size in kinds.items() if "lambda_proj" not in name} == {2}
    np.testing.assert_allclose(model(IDS).logits, load(tmp_path)(IDS).logits, rtol=1e-5, atol=1e-5)


def test_logits_and_text_are_those_of_expanded_weights(folder: Path) -> None:
    stored, expanded = load(folder, weights="stored"), load(folder)
    ours, theirs = stored(IDS).logits, expanded(IDS).logits
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    np.testing.assert_array_equal(
        stored.generate(IDS, max_new_tokens=9, eos_token_id=None),
        expanded.generate(IDS, max_new_tokens=9, eos_token_id=None),
    )


def test_matrices_are_kept_for_a_wider_dtype_and_expanded_for_the_other_16_bit_one(folder: Path) -> None:
    wide, exact = load(folder, weights="stored", dtype="float64"), load(folder, dtype="float64")
    assert wide.params["lm_head"]["weight"].dtype.itemsize == 2
    assert load(folder, weights="stored", dtype="float32").params["lm_head"]["weight"].dtype.itemsize == 2
    np.testing.assert_allclose(wide(IDS).logits, exact(IDS).logits, rtol=1e-12, atol=1e-14)
    other = "float16" if wide.config.dtype == "bfloat16" else "bfloat16"
    assert load(folder, weights="stored", dtype=other).params["lm_head"]["weight"].dtype == np.float32


def test_stored_weights_are_saved_bitwise_equal(folder: Path, tmp_path: Path) -> None:
    load(folder, weights="stored").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_operations_that_need_expanded_weights_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match='load the model with weights="expanded"'):
        load(folder, weights="stored").loss_and_grad(IDS, labels=IDS)
    with pytest.raises(ValueError, match="weights: got 'quantised', expected"):
        load(folder, weights="quantised")
    for options in ({"kernels": "reference"}, {"backend": array_api_strict}):
        with pytest.raises(ValueError, match=r'^weights: got "stored", expected "expanded" without the fast kernels'):
            load(folder, weights="stored", **options)


def test_keep_half_defaults_to_the_backend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(**options: Any) -> bool:
        return flatten(load(folder, **options).params)["lm_head.weight"].dtype.itemsize == 2

    assert not kept()
    monkeypatch.setattr(pretrained, "keep_half", lambda weights, xp, kernels: (weights, kernels) == ("auto", "fast"))
    assert kept()
    assert not kept(weights="expanded")
    assert not kept(kernels="reference")


def test_the_backend_receives_the_dtype_of_the_matrices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By which the kernels of CUDA round what they multiply with them."""
    told: list[str] = []

    def backend_for(*args: Any) -> Backend:
        told.append(args[3])
        return backends.backend_for(*args)

    monkeypatch.setattr(pretrained, "backend_for", backend_for)
    stored = load(folder, weights="stored").dtype
    load(folder, dtype="float64")
    load(folder, backend=array_api_strict)  # whose dtypes have no name
    assert told == [stored, "float64", "float32"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory a process has held")
def test_a_process_holds_stored_weights_once_and_in_16_bits(tmp_path: Path) -> None:
    """The file and little more: less than one more matrix of a feed-forward network, if that were expanded."""
    config = refdiff.DiffLlamaConfig(
        vocab_size=8000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=3, num_attention_heads=16,
        num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    for name, one in (("large", config), ("small", CONFIG)):
        refdiff.DiffLlamaForCausalLM.from_config(one, dtype="bfloat16").save_pretrained(tmp_path / name)
    stored = (tmp_path / "large" / "model.safetensors").stat().st_size

    def held(side: str) -> float:
        peaks = []
        for name in ("small", "large"):
            with child(
                side, BenchRow("memory", 48, 2), BenchSettings(str(tmp_path / name), threads=2, steps=4)
            ) as measure:
                peaks.append(measure()["bytes"])
        return (peaks[1] - peaks[0]) / stored

    assert 1.0 < held("stored") < 1.27
    assert held("refdiff") > 1.9
