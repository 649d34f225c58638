"""tokenizer_config.json and special_tokens_map.json: every spelling, and every wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from refdiff import CheckpointError, Tokenizer
from tests.generation.tokenizer.test_tokenizer import words
from tests.generation.trained_tokenizers import save


def load(folder: Path, **files: Any) -> Tokenizer:
    return Tokenizer.from_pretrained(save(folder, words().backend.native, **files))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": {"content": 5}}, r"eos_token: got an object"),
        ({"eos_token": {"content": "</s>", "lstrip": "no"}}, r"eos_token: lstrip: got a string"),
        ({"additional_special_tokens": [1]}, r"extra_special_tokens\[0\]: got an integer"),
        ({"added_tokens_decoder": {"x": "y"}}, r"got the keys .'x'., expected token ids"),
        ({"padding_side": "up"}, r"padding_side: got 'up'"),
        ({"model_max_length": -1}, r"model_max_length: got -1"),
        ({"chat_template": [{"name": "default"}]}, r"chat_template: got an object, expected a string or"),
    ],
)
def test_wrong_fields(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json: .*{message}"):
        load(tmp_path, tokenizer_config=config)


@pytest.mark.parametrize("token", ["\ud800", {"content": "a\udfff"}])
def test_a_token_that_is_no_text_names_the_file(token: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="half a surrogate pair is none") as caught:
        load(tmp_path, tokenizer_config={"bos_token": token})
    assert str(caught.value).startswith(f"{tmp_path}/tokenizer_config.json: bos_token: got ")


def test_extra_special_tokens_are_set_as_tokens_or_ids(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, tokenizer_config={"extra_special_tokens": ["<image>"]})
    one = tokenizer.convert_ids_to_tokens(7)
    tokenizer.extra_special_tokens_ids = [7]
    assert (tokenizer.extra_special_tokens, tokenizer.extra_special_tokens_ids) == ([one], [7])
    assert one in tokenizer.all_special_tokens
    tokenizer.extra_special_tokens = ["<image>"]
    assert tokenizer.extra_special_tokens_ids == [tokenizer.convert_tokens_to_ids("<image>")]
    assert one not in tokenizer.all_special_tokens
    tokenizer.extra_special_tokens_ids = []
    assert tokenizer.extra_special_tokens == []


def test_a_special_token_is_given_as_an_object(tmp_path: Path) -> None:
    folder = load(tmp_path).source.parent
    given = Tokenizer.from_pretrained(folder, eos_token=AddedToken("<end>", lstrip=True, normalized=False))
    assert given.eos_token == "<end>"
    assert given.added_tokens_decoder[given.eos_token_id].lstrip
