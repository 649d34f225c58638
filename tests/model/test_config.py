"""The config: every spelling of the published files, round trips, limits, hostile files."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff import hub
from refdiff.checkpoint_files import CONFIG_FILES
from refdiff.errors import CheckpointError
from refdiff.model.config import DiffLlamaConfig
from tests.model.config_files import HANDCUT, ONE_BILLION, TINY_RANDOM
from tests.model.models import VARIANT_NAMES


def write(folder: Path, content: str | dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_only_version_2_has_two_queries_a_head(variant: str) -> None:
    config = DiffLlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, variant=variant)
    assert config.num_query_heads == (8 if variant == "v2" else 4)


def test_the_handcut_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", HANDCUT)
    config = DiffLlamaConfig.from_pretrained(folder)
    assert config == DiffLlamaConfig.from_pretrained(folder / "config.json")
    assert config.rope_parameters == {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    assert (config.dtype, config.tie_word_embeddings, config.pad_token_id) == ("float32", True, None)
    assert (config.bos_token_id, config.eos_token_id) == (128000, 128001)
    heads, key_values = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    attention = config.hidden_size * 2 * (heads + key_values) + 4 * config.head_dim
    layer = attention + 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size
    parameters = config.vocab_size * config.hidden_size + config.num_hidden_layers * layer + config.hidden_size
    assert parameters == 1_235_818_496


def test_the_one_billion_and_the_tiny_random_file(tmp_path: Path) -> None:
    config = DiffLlamaConfig.from_pretrained(write(tmp_path / "model", ONE_BILLION))
    assert (config.num_key_value_heads, config.head_dim, config.dtype) == (32, 64, "bfloat16")
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    config = DiffLlamaConfig.from_pretrained(write(tmp_path / "model", TINY_RANDOM))
    assert (config.num_key_value_heads, config.head_dim, config.hidden_act) == (2, 8, "gelu")
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (config.pad_token_id, config.eos_token_id, config.dtype) == (128004, 128009, "float32")
    assert config.extra == {"is_decoder": False, "transformers_version": "5.16.0"}


@pytest.mark.parametrize("content", [HANDCUT, ONE_BILLION, TINY_RANDOM])
def test_saved_and_read_again_is_the_same(content: str, tmp_path: Path) -> None:
    config = DiffLlamaConfig.from_pretrained(write(tmp_path / "model", content))
    assert config.save_pretrained(tmp_path / "deep" / "saved") == tmp_path / "deep" / "saved" / "config.json"
    assert DiffLlamaConfig.from_pretrained(tmp_path / "deep" / "saved") == config
    assert DiffLlamaConfig(**config.to_dict()) == config
    saved = json.loads((tmp_path / "deep" / "saved" / "config.json").read_text())
    assert saved["model_type"] == "diffllama"
    assert "id2label" not in saved
    assert "torch_dtype" not in saved
    assert saved["transformers_version"] == json.loads(content)["transformers_version"]


COMMON = {
    "hidden_act": "silu", "max_position_embeddings": 2048, "initializer_range": 0.02, "use_cache": True,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "attention_bias": False,
    "attention_dropout": 0.0, "lambda_std_dev": 0.1, "vocab_size": 32000, "num_attention_heads": 32,
    "num_key_value_heads": 32, "dtype": None, "id2label": {0: "LABEL_0", 1: "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "problem_type": None, "architectures": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
DIFFLLAMA = {
    **COMMON, "model_type": "diffllama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "rms_norm_eps": 1e-5, "head_dim": 64,
}  # fmt: skip
LLAMA = {
    **COMMON, "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "rms_norm_eps": 1e-6, "head_dim": 128,
}  # fmt: skip


def test_fields_left_out_have_the_defaults_of_transformers() -> None:
    """The defaults of transformers' DiffLlamaConfig and LlamaConfig; tests/parity compares with theirs."""
    assert DiffLlamaConfig().to_dict() == DIFFLLAMA
    assert DiffLlamaConfig(model_type="llama").to_dict() == LLAMA
    assert DiffLlamaConfig(variant="plain").to_dict() == {**DIFFLLAMA, "model_type": "llama"}


LIMITS = {
    "vocab_size": 2_147_483_647, "hidden_size": 16_777_216, "intermediate_size": 268_435_456,
    "num_hidden_layers": 10_000, "num_attention_heads": 65_536, "max_position_embeddings": 9_007_199_254_740_992,
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_sizes_go_up_to_their_limit(name: str) -> None:
    fields = {"head_dim": 2, "num_attention_heads": 2, "bos_token_id": None, "eos_token_id": None}
    for value in (1 if name != "num_attention_heads" else 2, LIMITS[name]):
        assert getattr(DiffLlamaConfig(**{**fields, name: value}), name) == value
    for value in (0, LIMITS[name] + 1):
        with pytest.raises(ValueError, match=f"{name}: got {value}, expected 1 to {LIMITS[name]}"):
            DiffLlamaConfig(**{**fields, name: value})


def test_unknown_fields_are_kept_and_named_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {"num_diff_heads": 3, "note": {"by": ["me"]}, "max_length": 20, "prefix": None})
    with pytest.warns(UserWarning, match="kept for saving: note, num_diff_heads") as caught:
        config = DiffLlamaConfig.from_pretrained(folder)
    assert len(caught) == 1
    assert str(folder / "config.json") in str(caught[0].message)
    assert config.extra == {"num_diff_heads": 3, "note": {"by": ["me"]}, "max_length": 20, "prefix": None}
    config.save_pretrained(tmp_path / "saved")
    with pytest.warns(UserWarning, match="note, num_diff_heads"):
        assert DiffLlamaConfig.from_pretrained(tmp_path / "saved") == config


def test_a_changed_copy_keeps_the_other_fields() -> None:
    config = DiffLlamaConfig(num_key_value_heads=4, variant="paper", prefix="p", vocab_size=100)
    assert config.extra == {"prefix": "p"}
    assert "prefix" not in repr(config)
    changed = replace(config, vocab_size=99)
    assert (changed.vocab_size, changed.num_key_value_heads, changed.variant) == (99, 4, "paper")
    assert changed.extra == {"prefix": "p"}
    assert DiffLlamaConfig(extra={"prefix": "p", "vocab_size": 7}, vocab_size=9).vocab_size == 9


def test_another_number_of_labels_replaces_their_names() -> None:
    config = DiffLlamaConfig(id2label={0: "a", 1: "b", 2: "c"})
    config.num_labels = 3
    assert config.id2label == {0: "a", 1: "b", 2: "c"}
    config.num_labels = 4
    assert config.id2label == {i: f"LABEL_{i}" for i in range(4)}
    assert config.label2id == {f"LABEL_{i}": i for i in range(4)}


def test_the_original_context_length_may_be_a_top_level_field() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = DiffLlamaConfig(rope_parameters=rope, original_max_position_embeddings=512)
    assert config.rope_parameters["original_max_position_embeddings"] == 512


def test_fields_that_say_nothing_are_not_saved(tmp_path: Path) -> None:
    config = DiffLlamaConfig(id2label={0: "a", 1: "b", 2: "c"})
    saved = json.loads(config.save_pretrained(tmp_path).read_text())
    assert saved["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert not {"dtype", "label2id", "problem_type", "architectures"} & saved.keys()
    assert saved["pad_token_id"] is None


def test_a_save_that_was_interrupted_is_finished_first(tmp_path: Path) -> None:
    pending = write(tmp_path, {"hidden_size": 64}) / ".refdiff-save"
    write(pending, {"hidden_size": 128})
    (pending / "model.safetensors").touch()
    (pending / "files.json").write_text(json.dumps({"files": ["config.json", "model.safetensors"]}))
    assert DiffLlamaConfig.from_pretrained(tmp_path).hidden_size == 128
    assert not pending.exists()


def test_remarks_and_unknown_fields_come_in_one_warning() -> None:
    with pytest.warns(UserWarning, match="foo") as caught:
        DiffLlamaConfig(foo=1, pad_token_id=-1, rope_parameters={"rope_type": "linear", "factor": 0.5})
    told = (
        "DiffLlama does not use these fields, kept for saving: foo; rope_parameters.factor is 0.5, below 1, which "
        "shortens the context; pad_token_id -1 is outside the vocabulary (0 to 31999)"
    )
    assert [(str(w.message), w.filename) for w in caught] == [(f"DiffLlamaConfig: {told}", __file__)]
    with pytest.warns(UserWarning, match="foo") as caught:
        DiffLlamaConfig.from_dict({"foo": 1, "pad_token_id": -1, "rope_scaling": {"type": "linear", "factor": 0.5}})
    told = told.replace("rope_parameters", "rope_scaling")
    assert [(str(w.message), w.filename) for w in caught] == [(f"config.json: {told}", __file__)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "wobble"}}, r"^rope_scaling\.type: got 'wobble'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "^rope_scaling: got no factor, expected each with rope_type 'lin"),
        ({"rope_scaling": {"type": "linear"}}, "^rope_scaling: got no factor, expected each with type 'linear'"),
        ({"rope_scaling": {"type": "x", "rope_type": "y"}}, r"^rope_scaling\.rope_type: got 'y'"),
        ({"rope_theta": 0}, "^rope_theta: got 0"),
        ({"partial_rotary_factor": -1}, "^partial_rotary_factor: got -1"),
        ({"rope_theta": 1, "rope_parameters": {"rope_theta": 0}}, r"^rope_parameters\.rope_theta: got 0"),
        ({"rope_parameters": {"type": "wobble"}}, r"^rope_parameters\.type: got 'wobble'"),
    ],
    ids=str,
)
def test_an_error_names_the_rotary_settings_as_the_config_does(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffLlamaConfig(**fields)


def test_a_field_changed_to_nonsense_is_not_saved(tmp_path: Path) -> None:
    config = DiffLlamaConfig()
    config.save_pretrained(tmp_path)
    config.hidden_size = -1
    with pytest.raises(ValueError, match="hidden_size: got -1, expected"):
        config.save_pretrained(tmp_path)
    assert DiffLlamaConfig.from_pretrained(tmp_path) == DiffLlamaConfig()


def test_an_error_in_a_file_names_the_file_and_in_a_call_is_a_plain_value_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {"hidden_size": "64"})
    with pytest.raises(CheckpointError, match="hidden_size: got '64', a string, expected an integer") as caught:
        DiffLlamaConfig.from_pretrained(folder)
    assert str(folder / "config.json") in str(caught.value)
    with pytest.raises(ValueError, match="hidden_size") as plain:
        DiffLlamaConfig(hidden_size="64")
    assert not isinstance(plain.value, CheckpointError)
    with pytest.raises(CheckpointError, match=r"here: field names: got .*, expected strings"):
        DiffLlamaConfig.from_dict({3: 4}, source="here")  # type: ignore[dict-item]


def test_a_repo_is_downloaded_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def snapshot(repo: str, **options: Any) -> Path:
        calls.append((repo, options))
        return write(tmp_path / "snapshot", TINY_RANDOM)

    monkeypatch.setattr(hub, "snapshot", snapshot)
    config = DiffLlamaConfig.from_pretrained("some/repo", revision="abc", cache_dir=tmp_path, local_files_only=True)
    assert config.hidden_size == 32
    options = {"files": CONFIG_FILES, "revision": "abc", "cache_dir": tmp_path, "local_files_only": True}
    assert calls.pop() == ("some/repo", options)
    DiffLlamaConfig.from_pretrained("some/repo")
    assert calls == [("some/repo", {"files": CONFIG_FILES})]


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = [
    *DiffLlamaConfig().to_dict(),
    *("rope_theta", "rope_scaling", "torch_dtype", "num_labels", "partial_rotary_factor", "mlp_bias", "extra"),
]
ROPE_NAMES = (
    "rope_type", "type", "rope_theta", "factor", "short_factor", "long_factor", "beta_fast", "low_freq_factor",
)  # fmt: skip
ROPE_TYPE = st.sampled_from(["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"])
ROPE = st.dictionaries(st.sampled_from(ROPE_NAMES), ANY_JSON | ROPE_TYPE | st.floats(0.5, 8), max_size=5)


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), ANY_JSON | ROPE, max_size=4))
def test_any_content_gives_a_config_or_one_checkpoint_error(content: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        outcome: DiffLlamaConfig | CheckpointError
        try:
            outcome = DiffLlamaConfig.from_dict(content)
        except CheckpointError as error:
            outcome = error
        if isinstance(outcome, CheckpointError):
            assert str(outcome).startswith("config.json: ")
        else:
            assert DiffLlamaConfig(**outcome.to_dict()).to_dict().keys() == outcome.to_dict().keys()
