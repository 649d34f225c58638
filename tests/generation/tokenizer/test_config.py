"""tokenizer_config.json and special_tokens_map.json: every spelling, and every wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refdiff import CheckpointError, Tokenizer
from refdiff.generation.tokenizer.config import NO_LIMIT, max_length_in, read_tokenizer_config, side_in
from tests.generation.tokenizer.test_tokenizer import words
from tests.generation.trained_tokenizers import save


def load(folder: Path, **files: Any) -> Tokenizer:
    return Tokenizer.from_pretrained(save(folder, words().backend.native, **files))


def test_strings_and_objects_mean_the_same(tmp_path: Path) -> None:
    a_string = load(tmp_path / "a", tokenizer_config={"eos_token": "<end>"})
    an_object = load(tmp_path / "b", tokenizer_config={"eos_token": {"__type": "AddedToken", "content": "<end>"}})
    in_the_map = load(tmp_path / "c", special_tokens_map={"eos_token": {"content": "<end>", "lstrip": False}})
    for tokenizer in (a_string, an_object, in_the_map):
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<end>", 8)
        assert tokenizer.decode(tokenizer.encode("a <end>"), skip_special_tokens=True) == "a"


def test_the_map_wins_unless_the_config_lists_its_added_tokens(tmp_path: Path) -> None:
    files: dict[str, Any] = {"special_tokens_map": {"eos_token": "d"}, "tokenizer_config": {"eos_token": "c"}}
    assert load(tmp_path, **files).eos_token == "d"
    files["tokenizer_config"]["added_tokens_decoder"] = {"7": {"content": "d", "special": True}}
    assert load(tmp_path, **files).eos_token == "c"


def test_flags_are_kept(tmp_path: Path) -> None:
    token = {"content": "<x>", "lstrip": True, "rstrip": False, "normalized": False, "special": False}
    tokenizer = load(tmp_path, tokenizer_config={"added_tokens_decoder": {"20": token}})
    (added,) = (t for t in tokenizer.backend.added_tokens().values() if t.content == "<x>")
    assert (added.lstrip, added.rstrip, added.special) == (True, False, False)


def test_named_extra_tokens(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, tokenizer_config={"extra_special_tokens": {"image_token": "<image>"}})
    assert tokenizer.special_tokens_map == {"image_token": "<image>"}
    assert tokenizer.decode(tokenizer.encode("a <image>"), skip_special_tokens=True) == "a"


def test_no_files_at_all(tmp_path: Path) -> None:
    assert read_tokenizer_config(tmp_path) == {}
    assert load(tmp_path).special_tokens_map == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": 5}, r"eos_token: got an integer"),
        ({"eos_token": {"content": 5}}, r"eos_token: got an object"),
        ({"eos_token": ["</s>"]}, r"eos_token: got a list"),
        ({"eos_token": {"content": "</s>", "lstrip": "no"}}, r"eos_token: lstrip: got a string"),
        ({"image_token": {"text": "x"}}, r"image_token: got an object"),
        ({"additional_special_tokens": "<x>"}, r"extra_special_tokens: got a string"),
        ({"additional_special_tokens": [1]}, r"extra_special_tokens\[0\]: got an integer"),
        ({"added_tokens_decoder": []}, r"added_tokens_decoder: got a list"),
        ({"added_tokens_decoder": {"x": "y"}}, r"not a token id"),
        ({"added_tokens_decoder": {"1": None}}, r"added_tokens_decoder\['1'\]: got null"),
        ({"padding_side": "up"}, r"padding_side: got 'up'"),
        ({"truncation_side": 3}, r"truncation_side: got 3"),
        ({"model_max_length": "long"}, r"model_max_length: got 'long'"),
        ({"model_max_length": -1}, r"model_max_length: got -1"),
        ({"chat_template": 5}, r"chat_template must be"),
        ({"chat_template": [{"name": "default"}]}, r"chat_template must be"),
    ],
)
def test_wrong_fields(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json: .*{message}"):
        load(tmp_path, tokenizer_config=config)


def test_a_config_that_is_no_object(tmp_path: Path) -> None:
    save(tmp_path, words().backend.native)
    for text in ("[]", "{", "\x80", json.dumps("x")):
        (tmp_path / "tokenizer_config.json").write_text(text, encoding="latin-1")
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
            Tokenizer.from_pretrained(tmp_path)


def test_max_length_in() -> None:
    assert max_length_in({}, "f") > NO_LIMIT
    assert max_length_in({"model_max_length": 1e30}, "f") > NO_LIMIT
    assert max_length_in({"max_len": 5}, "f") == 5
    assert max_length_in({"model_max_length": float("inf")}, "f") > NO_LIMIT


def test_side_in() -> None:
    assert side_in({"padding_side": "LEFT"}, "padding_side", "right", "f") == "left"
    assert side_in({}, "padding_side", "right", "f") == "right"


@pytest.mark.parametrize("token", ["\ud800", {"content": "a\udfff"}])
def test_a_token_that_is_no_text_names_the_file(token: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="half a surrogate pair is none") as caught:
        load(tmp_path, tokenizer_config={"bos_token": token})
    assert str(caught.value).startswith(f"{tmp_path}/tokenizer_config.json: bos_token: got ")
