"""Lengths, end tokens, stop strings across tokens, time."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.generation.stopping import StopStringCriteria
from tests.generation.fakes import letters, words
from tests.generation.trained_tokenizers import KINDS


@pytest.mark.parametrize(
    ("tokens", "stops"),
    [
        (["st", "op"], True), (["stop"], True), (["st", "opera"], True), (["sto", "pper"], True),
        (["las", "topper"], True), (["s", "to", "pped"], True), (["stop", "at"], False), (["st", "op", "at"], False),
        (["st", "opera", "tion"], False), (["st", "", "op"], True), (["stop", ""], False), (["stopsto", "p"], True),
    ],
)  # fmt: skip
def test_a_stop_string_has_to_reach_into_the_last_token(tokens: list[str], stops: bool) -> None:
    vocabulary = sorted(set(tokens))
    stopping = StopStringCriteria(words(*vocabulary), ["stop"])
    assert stopping(np.array([[vocabulary.index(token) for token in tokens]]), None).tolist() == [stops]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", ["猫である", "名前はま", "fox jumps", " lazy", "stop.", "."])
def test_stop_strings_of_real_tokenizers(kind: str, stop: str) -> None:
    """Token by token through a text, it stops first where the decoded text first holds the string."""
    tokenizer = KINDS[kind]()
    text = "The quick brown fox jumps over the lazy dog, and it doesn't stop. 吾輩は猫である。名前はまだ無い。"
    ids = np.array(tokenizer.encode(text).ids)
    if stop not in tokenizer.decode(ids.tolist()):  # unigram joins words by its own mark
        pytest.fail(f"{kind} does not keep the text")
    stopping = StopStringCriteria(tokenizer, stop)
    first = next(end for end in range(1, len(ids) + 1) if stop in tokenizer.decode(ids[:end].tolist()))
    assert [end for end in range(1, first + 1) if stopping(ids[None, :end], None)[0]] == [first]


def test_a_stop_string_in_the_prompt_does_not_stop_what_follows() -> None:
    """Also where the prompt and the text are one run of byte tokens."""
    for kind in KINDS.values():
        tokenizer = kind()
        ids = np.array(tokenizer.encode("猫でも", add_special_tokens=False).ids)
        stopping = StopStringCriteria(tokenizer, ["猫"])
        ends = [end for end in range(1, len(ids) + 1) if stopping(ids[None, :end], None)[0]]
        assert len(ends) == 1
        assert ends[0] < len(ids)


def test_padding_is_no_text() -> None:
    ids = np.array([[0, 0, 0, 0], [1, 1, 0, 0]])
    assert StopStringCriteria(letters(), ["aaa"])(ids, None).tolist() == [True, False]
    assert StopStringCriteria(letters(), ["aaa"], np.array([2, 0]))(ids, None).tolist() == [False, False]
    twice = np.repeat(ids, 2, axis=0)  # two sequences of each prompt
    assert StopStringCriteria(letters(), ["aaa"], np.array([0, 2]))(twice, None).tolist() == [True, True, False, False]
