"""Loading, drawing, saving: what comes back is what went in."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

import refdiff
from refdiff import hub
from refdiff.backends import overlay
from refdiff.checkpoint_files import CONFIG_FILES, WEIGHT_FILES
from refdiff.model import weights
from tests.model.models import CLASSES, ids, small_config, small_model

TOKENS = ids(0, 1, 5)
KIND = refdiff.DiffLlamaForCausalLM


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_saved_model_is_loaded_unchanged(kind, dtype, tmp_path):
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


class WithMethods(KIND):
    """What a user adds to a model: no name that a checkpoint could have."""


def test_a_subclass_of_a_user_is_loaded_saved_and_used_as_its_class(tmp_path):
    model = WithMethods.from_config(small_config(), 3)
    model.save_pretrained(tmp_path)
    again = WithMethods.from_pretrained(tmp_path)
    assert type(again) is WithMethods
    assert again.config.architectures == ["DiffLlamaForCausalLM"]
    expected = KIND.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(TOKENS).logits, expected(TOKENS).logits)
    tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
    assert refdiff.pipeline("text-generation", model=again, tokenizer=tokenizer).model is again
    record = refdiff.oracle.trace(again, TOKENS)
    record.write(tmp_path / "run.safetensors")
    assert refdiff.oracle.read_trace(tmp_path / "run.safetensors").run is not None


def test_no_dtype_is_that_of_the_file_and_of_nothing_else(tmp_path):
    KIND.from_config(small_config(), dtype="bfloat16").save_pretrained(tmp_path)
    assert KIND.from_pretrained(tmp_path, dtype=None).dtype == "bfloat16"
    assert KIND.from_pretrained(tmp_path, dtype=None, torch_dtype="float32").dtype == "float32"
    for way in (KIND, KIND.from_config):
        with pytest.raises(ValueError, match="dtype: got None, expected one of float32, float64"):
            way(small_config(), dtype=None)
        with pytest.raises(ValueError, match="dtype: got 5, expected one of float32, float64"):
            way(small_config(), dtype=5)


@pytest.mark.parametrize("dtype", ["float16", "torch.float16", np.float16, np.dtype("float16")])
def test_a_dtype_may_be_a_name_or_one_of_numpy_or_torch(dtype):
    for make in (KIND, KIND.from_config):
        assert make(small_config(), dtype=dtype).dtype == "float16"


def test_generation_config_travels(tmp_path):
    model = small_model()
    model.generation_config = {"eos_token_id": [1, 2], "temperature": 0.5}
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    model.save_pretrained(tmp_path / "a folder" / "in shards", 100_000)
    assert len([*(tmp_path / "a folder" / "in shards").glob("model-*.safetensors")]) > 1
    assert refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path).generation_config == model.generation_config


def test_a_model_saved_under_the_home_folder_is_loaded_from_there(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for kind in (refdiff.DiffLlamaConfig, refdiff.Tokenizer, refdiff.DiffLlamaForCausalLM):
        for folder in (f"~/{kind.__name__}", f"~nobody at all/{kind.__name__}"):  # of that name there is no user
            kind.from_pretrained(tiny_checkpoint).save_pretrained(folder)
            kind.from_pretrained(folder)
    assert not (tmp_path / "~").exists()


def test_the_seed_decides_the_weights():
    kind, config = refdiff.DiffLlamaForCausalLM, small_config()
    drawn = [kind.from_config(config, *seed).params["lm_head"]["weight"] for seed in ((1,), (1,), (0,), ())]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[1] != drawn[2]).any()
    np.testing.assert_array_equal(drawn[2], drawn[3])
    np.testing.assert_array_equal(drawn[3], kind(config).params["lm_head"]["weight"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda flat: {name.removeprefix("model."): a for name, a in flat.items()}, "problems:"),  # the base model's
        (lambda flat: {name: a for name, a in flat.items() if ".2." not in name}, "model.layers.2.* is missing"),
        (lambda flat: {name: a for name, a in flat.items() if "1.self_attn.lambda_q2" not in name}, "q2 is missing"),
        (lambda flat: flat | {"lm_head.weight": np.zeros((52, 26))}, r"has shape \(52, 26\), expected \(53, 26\)"),
        (lambda flat: flat | {"score.weight": np.zeros((2, 26))}, "score.weight is no parameter of it"),
    ],
)
def test_parameters_of_another_model_are_refused(change, problem):
    changed = weights.nest(change(weights.flatten(small_model().params)))
    with pytest.raises(ValueError, match=f"(?s)not the parameters of a DiffLlamaForCausalLM .*{problem}"):
        KIND(small_config(), changed)


def test_a_model_may_have_a_single_layer():
    assert KIND(small_config(num_hidden_layers=1))(TOKENS).logits.shape == (1, 5, 53)


def test_num_parameters_counts_tied_weights_once():
    model, tied = small_model(), small_model(tie_word_embeddings=True)
    assert model.num_parameters() - tied.num_parameters() == 53 * 26
    assert model.num_parameters() == sum(a.size for a in weights.flatten(model.params).values())


def test_loading_on_another_backend(away, tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    there = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path, **away.choice)
    assert away.holds(there.params["lm_head"]["weight"])
    there.save_pretrained(tmp_path / "again")
    again = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(again(TOKENS).logits, model(TOKENS).logits)


def test_an_unknown_backend_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="backend: got 'jax', expected"):
        refdiff.DiffLlamaForCausalLM.from_pretrained("/nowhere", backend="jax")


def test_every_way_to_a_model_takes_every_choice(away, tmp_path):
    small_model().save_pretrained(tmp_path)
    ways = (KIND, KIND.from_config, lambda config, **choice: KIND.from_pretrained(tmp_path, **choice))
    for way in ways:
        for choice, message in ({"threads": 0}, "threads"), ({"kernels": "slow"}, "kernels"):
            with pytest.raises(ValueError, match=message):
                way(small_config(), **choice)
        assert way(small_config(), kernels="reference").backend.kernels is None
        assert way(small_config()).backend.kernels is not None
        model = way(small_config(), **away.choice, dtype="float64")
        placed = model.params["lm_head"]["weight"]
        assert away.holds(placed)
        assert placed.dtype == away.xp.float64
        exact = way(small_config(), dtype="float64")
        assert exact.dtype == "float64"
        assert all(a.dtype == np.float64 for a in weights.flatten(exact.params).values())
        assert way(small_config()).generation_config == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        assert refdiff.DiffLlamaModel(small_config()).generation_config == {}


def test_numpy_has_no_device_but_the_cpu():
    assert KIND.from_config(small_config(), device="cpu").device == "cpu"
    with pytest.raises(ValueError, match=r"device: got 'cuda:0', .* with NumPy; for a GPU pass backend"):
        KIND.from_config(small_config(), device="cuda:0")
    with pytest.raises(ValueError, match="device: got 0, expected"):
        KIND.from_pretrained("/nowhere", device=0)


def test_a_repo_is_asked_for_its_config_and_weights(tmp_path, monkeypatch):
    small_model().save_pretrained(tmp_path)
    calls = []
    monkeypatch.setattr(hub, "snapshot", lambda repo, **options: calls.append((repo, options)) or tmp_path)
    options = {"revision": "abc", "cache_dir": tmp_path, "local_files_only": True}
    check = refdiff.DiffLlamaConfig.from_pretrained
    for given in (options, {}):
        KIND.from_pretrained("some/repo", **given)
        assert calls[0] == ("some/repo", {"files": CONFIG_FILES + WEIGHT_FILES, "check": check, **given})
        calls.clear()


@pytest.mark.parametrize(
    ("rope", "fields"),
    [("default", {}), ("dynamic", {"factor": 2.0}), ("yarn", {"factor": 2.0, "original_max_position_embeddings": 5})],
)
def test_frequencies_are_those_of_the_longest_position(rope, fields):
    """Counted from 1, with what is in the cache, and with positions that were given; the scale, which yarn has, too."""
    parameters = {"rope_type": rope, "rope_theta": 100.0, **fields}
    model, asked, computed, used = small_model(max_position_embeddings=9, rope_parameters=parameters), [], [], []

    def watched(name, function):
        def call(*args, **options):
            result = function(*args, **options)
            if name == "rope_frequencies":
                asked.append(args)
                computed.append(result)
            if name == "rope_cos_sin":
                used.append(args[1:3])
            return result

        return call

    model.ops = overlay(model.ops, watched)
    cache = refdiff.KVCache(3)
    model(TOKENS, cache=cache)
    model(TOKENS[:, :4], cache=cache)  # the ninth token is within the limit: no warning
    model(TOKENS, position_ids=[[0, 3, 8, 1, 2]])
    config = model.config
    assert asked == [(config.rope_parameters, 6, 9, n) for n in (5, 9, 9)]
    with pytest.warns(UserWarning, match="longer than the 9 positions") as caught:
        [model(TOKENS[:, :1], cache=cache) for _ in range(2)]
    assert [warning.filename for warning in caught] == [__file__], "once"
    assert [args[-1] for args in asked[-2:]] == [10, 11]
    assert used == computed
    assert {scale != 1 for _, scale in used} == {rope == "yarn"}


def test_a_call_of_one_token_shows_the_kernels_a_weight():
    """By which it tells whether the products are large enough to leave the cores to BLAS."""
    model, seen = small_model(), []
    one = ids(0, 1, 1)

    def scope(weight):
        seen.append(weight)
        return contextlib.nullcontext()

    model.backend.kernels.inference_scope = scope
    embedded = model.base_params["embed_tokens"]["weight"][one]
    calls = (((one,), {}), ((), {"input_ids": one}), ((ids(0, 2, 1),), {}), ((), {"inputs_embeds": embedded}))
    for args, options in calls:
        model(*args, **options)
    gate = model.base_params["layers"][0]["mlp"]["gate_proj"]["weight"]
    assert [weight is gate for weight in seen] == [True, True, False, False]
    assert seen[2:] == [None, None]


def test_a_name_in_place_of_a_config_is_refused_with_the_loading_call():
    message = r"config: got 'bundled', expected a DiffLlamaConfig; DiffLlamaModel.from_pretrained\('bundled'\) loads"
    with pytest.raises(TypeError, match=message):
        refdiff.DiffLlamaModel("bundled")
    with pytest.raises(TypeError, match=message):
        refdiff.DiffLlamaModel.from_config("bundled")
    with pytest.raises(TypeError, match=r"config: got dict, expected a DiffLlamaConfig; DiffLlamaConfig.from_dict mak"):
        refdiff.DiffLlamaModel.from_config({"vocab_size": 8})


def test_a_misspelled_argument_of_a_call_has_a_hint():
    with pytest.raises(TypeError, match=r"expected any of input_ids, .*; did you mean output_attentions\?"):
        small_model()(TOKENS, output_attention=True)


class OfAnotherLibrary:
    """A config object that is known by its `to_dict` alone."""

    def to_dict(self):
        return small_config(num_labels=5).to_dict()


def test_a_config_may_come_from_elsewhere_and_be_changed(tmp_path):
    small_model(refdiff.DiffLlamaForSequenceClassification).save_pretrained(tmp_path)
    kind = refdiff.DiffLlamaForSequenceClassification
    assert kind.from_config(OfAnotherLibrary()).config == small_config(num_labels=5)
    loaded = kind.from_pretrained(tmp_path, problem_type="regression", rms_norm_eps=0.5)
    assert (loaded.config.problem_type, loaded.config.rms_norm_eps) == ("regression", 0.5)
    given = kind.from_pretrained(tmp_path, config=loaded.config, rms_norm_eps=0.25).config
    assert (given.problem_type, given.rms_norm_eps, loaded.config.rms_norm_eps) == ("regression", 0.25, 0.5)
    assert kind.from_pretrained(tmp_path, config=str(tmp_path), rms_norm_eps=0.25).config.rms_norm_eps == 0.25
    with pytest.raises(OSError, match="no such folder"):
        kind.from_pretrained(tmp_path / "elsewhere")
    config = loaded.config
    config.update({"num_labels": 3})
    assert config.num_labels == 3
    assert json.loads(config.to_json_string()) == json.loads(json.dumps(config.to_diff_dict()))
    assert refdiff.DiffLlamaConfig(**config.to_diff_dict()) == config
    with pytest.raises(ValueError, match="rms_norm_eps: got -1"):
        config.update({"rms_norm_eps": -1})


def test_options_of_generation_are_entries_and_attributes(tmp_path):
    model = small_model()
    model.generation_config.max_new_tokens = 3
    assert model.generate([[1, 2]], eos_token_id=-1).shape == (1, 5)
    model.save_pretrained(tmp_path)
    again = KIND.from_pretrained(tmp_path)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    assert again.generation_config == model.generation_config == {**tokens, "max_new_tokens": 3}
    again.generation_config = {"max_new_tokens": 2}
    assert again.generation_config.max_new_tokens == 2
    assert again.generation_config.num_beams is None


def test_weights_by_name_and_another_vocabulary():
    model = small_model(tie_word_embeddings=True)
    assert model.state_dict().keys() - dict(model.named_parameters()).keys() == {"lm_head.weight"}
    assert sum(a.size for a in model.parameters()) == model.num_parameters()
    assert model.num_parameters(exclude_embeddings=True) == model.num_parameters() - 53 * 26
    old = model.base_params["embed_tokens"]["weight"]
    for count in (59, 31):
        new = model.resize_token_embeddings(count)
        assert new.shape == (count, 26) == (model.config.vocab_size, 26)
        np.testing.assert_array_equal(new[:31], old[:31])
        assert model([[1, 2]]).logits.shape == (1, 2, count)
    with pytest.raises(ValueError, match="new_num_tokens: got 0, expected an integer of at least 1"):
        model.resize_token_embeddings(0)


def test_a_model_stays_where_and_what_it_is():
    model = small_model()
    assert model.eval() is model.to("cpu") is model.to(dtype="float64") is model.to("float64") is model
    for wrong, said in (
        ("cuda", "got device 'cuda', expected 'cpu'; load with"),
        ("float32", "got dtype float32, expected"),
    ):
        with pytest.raises(ValueError, match=f"^to: {said}"):
            model.to(wrong)


def test_pushing_uploads_what_saving_writes(monkeypatch):
    uploads = []

    class Api:
        def __init__(self, token):
            assert token == "secret"

        def create_repo(self, repo_id, private, exist_ok):
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, repo_id, folder_path, commit_message):
            uploads.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir()), commit_message))
            return "address"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert small_model().push_to_hub("small", token="secret") == "address"
    assert uploads == [
        ("me/small", ["config.json", "generation_config.json", "model.safetensors"], "Upload DiffLlamaForCausalLM")
    ]
