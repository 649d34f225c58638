"""Tokenizer: the calls, padding, truncation and decoding, by hand on tokenizers trained here."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

import refdiff
from refdiff import CheckpointError, Tokenizer
from tests.generation.trained_tokenizers import KINDS, save

WORDS = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, "a": 4, "b": 5, "c": 6, "d": 7}


def words(**config: Any) -> Tokenizer:
    """One word, one token: ids that can be written by hand."""
    backend = Backend(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return Tokenizer(backend, {**names, **config})


def test_one_text_gives_flat_lists_and_attributes() -> None:
    encoded = words()("a b x")
    assert encoded == {"input_ids": [0, 4, 5, 3], "attention_mask": [1, 1, 1, 1]}
    assert encoded.input_ids is encoded["input_ids"]
    with pytest.raises(AttributeError, match=r"'Encoded' object has no attribute 'labels'"):
        _ = encoded.labels


def test_arrays() -> None:
    tokenizer = words()
    encoded = tokenizer("a b", return_tensors="np")
    np.testing.assert_array_equal(encoded["input_ids"], [[0, 4, 5]])
    assert encoded["input_ids"].dtype == encoded["attention_mask"].dtype == np.int64
    assert tokenizer([]) == {"input_ids": [], "attention_mask": []}
    assert tokenizer([], return_tensors="np")["input_ids"].shape == (0, 0)
    with pytest.raises(ValueError, match=r"of 2 to 3 tokens.*padding=True"):
        tokenizer(["a", "a b"], return_tensors="np")


def test_padding_needs_a_pad_token() -> None:
    tokenizer = words(pad_token=None)
    with pytest.raises(ValueError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
        tokenizer(["a", "a b"], padding=True)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer(["a", "a b"], padding=True)["input_ids"] == [[0, 4, 1], [0, 4, 5]]


def test_as_many_second_texts_as_first_ones() -> None:
    with pytest.raises(ValueError, match="text, text_pair: got 1 and 2 texts"):
        words()(["a"], ["b", "c"])


@pytest.mark.parametrize(("strategy", "capacity"), [("only_second", 3), ("only_first", 2), ("longest_first", 3)])
def test_the_stride_of_a_pair_is_below_what_is_left_of_the_cut_text(strategy: str, capacity: int) -> None:
    texts = ("a b c d", "a b c d d")
    (whole,) = words().encodings(*texts, truncation=strategy, max_length=9, stride=capacity - 1)
    assert whole.overflowing
    with pytest.raises(ValueError, match=f"max_length: got 9, expected more than {capacity} tokens, the stride"):
        words().encodings(*texts, truncation=strategy, max_length=9, stride=capacity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "yes"}, "padding: got 'yes'"),
        ({"padding": True, "padding_side": "up"}, "padding_side: got 'up'"),
        ({"truncation": "first", "max_length": 3}, "truncation: got 'first'"),
        ({"truncation": True, "max_length": 0}, "max_length: got 0, expected an integer from 1, the special tokens"),
        ({"truncation": True, "max_length": "3"}, "max_length: got '3', expected an integer"),
        ({"return_tensors": "pt"}, "return_tensors: got 'pt'"),
        ({"padding": True, "pad_to_multiple_of": 0}, "pad_to_multiple_of: got 0"),
        ({"truncation": "only_second", "max_length": 2}, "got 'only_second' without text_pair, expected 'only_first'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        words()("a", **options)


def test_an_unknown_truncation_side_is_not_reported_as_a_file_error() -> None:
    tokenizer = words()
    tokenizer.truncation_side = "middle"
    with pytest.raises(ValueError, match='truncation_side: got \'middle\', expected "left" or "right"'):
        tokenizer("a b c", max_length=2)


@pytest.mark.parametrize("texts", [["a", "b"], ["a"], ("a", "b")])
def test_encode_takes_texts_as_a_call_does(texts: Any) -> None:
    assert words().encode(texts) == [words().encode(text) for text in texts]


def test_half_a_character() -> None:
    with pytest.raises(ValueError, match=r"lone surrogate.*position 1"):
        words()("a\ud800")


@pytest.mark.parametrize("text", [None, ["a", 4], b"a"])
def test_text_that_is_no_text(text: Any) -> None:
    with pytest.raises(TypeError, match=r"text: got .*, expected a string or a list of strings"):
        words()(text)


def test_decode() -> None:
    tokenizer = words()
    assert tokenizer.decode([0, 4, 5, 1]) == "<s> a b </s>"
    assert tokenizer.decode([0, 4, 5, 1], skip_special_tokens=True) == "a b"
    assert tokenizer.decode(4) == "a"
    assert tokenizer.decode(np.int64(4)) == tokenizer.decode(np.array(4)) == "a"
    assert tokenizer.decode(np.array([[0, 4], [5, 6]])) == ["<s> a", "b c"]
    assert tokenizer.decode([np.array([4]), [5, np.int32(6)]]) == ["a", "b c"]
    assert tokenizer.decode([]) == ""
    assert tokenizer.batch_decode([[4], [5, 6]]) == ["a", "b c"]
    assert tokenizer.batch_decode([4, 5]) == tokenizer.batch_decode(np.array([4, 5])) == ["a b"]
    assert tokenizer.batch_decode([[4], 5]) == ["a", "b"]
    assert tokenizer.batch_decode([]) == []
    with pytest.raises(ValueError, match=r"^token_ids: got 99999999, expected an id of the vocabulary of 8 tokens"):
        tokenizer.decode([4, 99999999])
    tokenizer.model_vocab_size = 1000  # a model may have more rows than its tokenizer has tokens
    assert tokenizer.decode([4, 999]) == "a"


@pytest.mark.parametrize("ids", [[-100], [1.5], ["a"], [2**40], None, [[[1]]]])
def test_ids_that_are_no_ids(ids: Any) -> None:
    with pytest.raises(ValueError, match=r"ids: got .*, expected (whole numbers from 0|token ids)"):
        words().decode(ids)


@given(st.text(max_size=40))
def test_any_text_survives_the_byte_tokenizer(text: str) -> None:
    tokenizer = _BYTES
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


_BYTES = Tokenizer(KINDS["byte_level"]())


def test_ids_beyond_the_model(tmp_path: Path) -> None:
    folder = save(tmp_path, words().backend.native, config={"vocab_size": 6})
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.encode("a b") == [0, 4, 5]
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*'c', id 6, expected ids below 6, .*vocab_size"):
        tokenizer.encode("a c")


def test_a_model_without_its_unknown_token() -> None:
    tokenizer = Tokenizer(Backend(models.WordLevel({"a": 0}, unk_token="[UNK]")))
    assert tokenizer.encode("a") == [0]
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*UNK"):
        tokenizer.encode("b")


def test_copies_and_pickles() -> None:
    tokenizer = words()
    tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template="{{ messages[0].content }}")
    for copied in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert copied("a b") == tokenizer("a b")
        assert copied.pad_token_id == 2


def test_threads_share_one_tokenizer() -> None:
    tokenizer = words()

    def work(length: int) -> list[int]:
        return [len(tokenizer("a b c d", max_length=length)["input_ids"]) for _ in range(100)]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, [2, 3, 4, 5]))
    assert [set(result) for result in results] == [{2}, {3}, {4}, {5}]


# ---- special tokens by name, tokens and ids


def test_setting_a_token() -> None:
    tokenizer = words()
    tokenizer.pad_token_id = 1
    assert tokenizer.pad_token == "</s>"
    tokenizer.pad_token = "<unk>"
    assert tokenizer.pad_token_id == 3
    for value in ("nowhere", 3):
        with pytest.raises(ValueError, match=f"pad_token: got {value!r}"):
            tokenizer.pad_token = value  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"eos_token_id: got 99, expected 0 to 7"):
        tokenizer.eos_token_id = 99


def test_a_result_is_on_the_device_of_a_model_on_numpy() -> None:
    encoded, model = words()("a b"), refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
    assert encoded.to(model.device) is encoded.to("cpu") is encoded
    with pytest.raises(ValueError, match="device: got 'cuda', expected \"cpu\""):
        encoded.to("cuda")


def test_a_mistyped_argument_of_a_question_about_tokens_is_named() -> None:
    encoded = words()("a b")
    assert encoded.char_to_token(char_index=0) == encoded.char_to_token(0)
    with pytest.raises(
        TypeError, match=r"^char_to_token: got an unexpected argument 'chr_index', expected any of batch_"
    ):
        encoded.char_to_token(chr_index=0)
