"""Loading, drawing, saving: what comes back is what went in."""

import sys

import array_api_strict
import numpy as np
import pytest

import refdiff
from refdiff.model import weights
from tests.model.models import CLASSES, ids, small_config, small_model

TOKENS = ids(0, 1, 5)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_saved_is_loaded(kind, dtype, tmp_path):
    model = kind.from_config(small_config(), 3, dtype=dtype)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert again.dtype == dtype
    assert again.config.to_dict() == {**model.config.to_dict(), "architectures": [kind.__name__], "dtype": dtype}
    a, b = weights.flatten(model.params), weights.flatten(again.params)
    assert list(a) == list(b)
    for name, value in a.items():
        assert b[name].dtype == (np.float64 if dtype == "float64" else np.float32)
        np.testing.assert_array_equal(b[name], value)
    x, y = model(TOKENS), again(TOKENS)
    for name, value in x.items():
        if name != "cache":
            np.testing.assert_array_equal(y[name], value)


def test_generation_config_travels(tmp_path):
    model = small_model()
    model.generation_config = {"eos_token_id": [1, 2], "temperature": 0.5}
    model.save_pretrained(tmp_path)
    assert refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path).generation_config == model.generation_config


def test_the_seed_decides_the_weights():
    kind = refdiff.DiffLlamaForCausalLM
    a, b, c = (kind.from_config(small_config(), seed).params["lm_head"]["weight"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_num_parameters_counts_tied_weights_once():
    model, tied = small_model(), small_model(tie_word_embeddings=True)
    assert model.num_parameters() - tied.num_parameters() == 53 * 26
    assert model.num_parameters() == sum(a.size for a in weights.flatten(model.params).values())


def test_loading_on_another_backend(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    device = array_api_strict.Device("device1")
    there = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path, backend=array_api_strict, device=device)
    assert there.params["lm_head"]["weight"].device == device
    there.save_pretrained(tmp_path / "again")
    again = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(again(TOKENS).logits, model(TOKENS).logits)


def test_an_unknown_backend_is_told_before_anything_is_read():
    with pytest.raises(ValueError, match="backend 'jax' is not known"):
        refdiff.DiffLlamaForCausalLM.from_pretrained("/nowhere", backend="jax")


def test_cupy_without_a_device_is_one_clear_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r'backend "cupy" does not answer .* or use backend "numpy"'):
        refdiff.DiffLlamaForCausalLM.from_config(small_config(), backend="cupy")


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(refdiff.CheckpointError, match="nowhere/at/all"):
        refdiff.DiffLlamaForCausalLM.from_pretrained("./nowhere/at/all")


@pytest.mark.parametrize("kind", CLASSES)
def test_a_config_alone_makes_a_model_with_new_weights(kind):
    config = small_config()
    a, b = weights.flatten(kind(config).params), weights.flatten(kind.from_config(config).params)
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(b[name], value)


def test_a_precision_may_be_numpys(tmp_path):
    kind = refdiff.DiffLlamaForCausalLM
    for dtype in (np.float64, np.dtype("float64")):
        assert kind.from_config(small_config(), dtype=dtype).dtype == "float64"
    kind(small_config(), dtype=np.float16).save_pretrained(tmp_path, dtype=np.float32)
    assert kind.from_pretrained(tmp_path).dtype == "float32"
    assert kind.from_pretrained(tmp_path, dtype=np.float64).dtype == "float64"


def test_help_names_every_argument():
    for kind in CLASSES:
        assert "attention_mask: (B, S) of 1 and 0" in kind.__call__.__doc__
