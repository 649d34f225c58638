"""Special tokens by name, and tokens ↔ ids."""

from __future__ import annotations

import numpy as np
import pytest

from tests.generation.tokenizer.test_tokenizer import words


def test_names_and_ids() -> None:
    tokenizer = words()
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<s>", 0)
    assert (tokenizer.sep_token, tokenizer.cls_token_id) == (None, None)
    names = ["bos_token", "eos_token", "unk_token", "pad_token"]
    assert list(tokenizer.special_tokens_map) == names
    assert tokenizer.all_special_ids == [0, 1, 3, 2]


def test_setting_a_token() -> None:
    tokenizer = words()
    tokenizer.pad_token_id = 1
    assert tokenizer.pad_token == "</s>"
    tokenizer.pad_token_id = None
    assert tokenizer.pad_token is None
    tokenizer.pad_token = "<unk>"
    assert tokenizer.pad_token_id == 3
    for value in ("nowhere", 3):
        with pytest.raises(ValueError, match=f"pad_token cannot be {value!r}"):
            tokenizer.pad_token = value  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"eos_token_id cannot be 99.*0 to 7"):
        tokenizer.eos_token_id = 99


def test_conversions() -> None:
    tokenizer = words()
    assert tokenizer.convert_tokens_to_ids("a") == 4
    assert tokenizer.convert_tokens_to_ids(["a", "nowhere"]) == [4, 3]
    assert tokenizer.convert_ids_to_tokens(4) == "a"
    assert tokenizer.convert_ids_to_tokens(-1) is None
    assert tokenizer.convert_ids_to_tokens(np.array([4, 99])) == ["a", None]
    assert tokenizer.get_vocab()["d"] == 7
    assert (tokenizer.vocab_size, len(tokenizer)) == (8, 8)


def test_added_tokens_count_in_len_only() -> None:
    tokenizer = words(additional_special_tokens=["<new>"])
    assert (tokenizer.vocab_size, len(tokenizer)) == (8, 9)
    assert tokenizer("a <new>")["input_ids"] == [0, 4, 8]
    assert tokenizer.decode([4, 8], skip_special_tokens=True) == "a"
