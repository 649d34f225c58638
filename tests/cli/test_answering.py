"""What options mean to `generate`, where a text may end and why it did, by hand."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from refdiff.cli.answering import (
    NUMBERS,
    call_options,
    chat_messages,
    encode,
    finish_reason,
    given_options,
    length_limit,
    result_fields,
)
from refdiff.cli.flags import UsageError
from refdiff.cli.parser import build_parser
from refdiff.errors import CheckpointError
from refdiff.generation.options import resolve
from tests.generation.fakes import FakeModel


def _args(*flags: str) -> argparse.Namespace:
    return build_parser().parse_args(["generate", *flags, "x"])


def _model(**generation: Any) -> Any:
    return SimpleNamespace(
        source="here", generation_config=generation, config=SimpleNamespace(max_position_embeddings=20, eos_token_id=1)
    )


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "no_repeat_ngram_size", "num_beams"])
def test_a_flag_and_a_checkpoint_have_one_limit(name: str) -> None:
    model, high = FakeModel(), int(NUMBERS[name].high)
    model.generation_config = {name: high}
    assert getattr(resolve(model, {}), name) == NUMBERS[name].check(high)
    with pytest.raises(argparse.ArgumentTypeError, match=f"at most {high}"):
        NUMBERS[name].check(high + 1)
    model.generation_config = {name: high + 1}
    with pytest.raises(CheckpointError, match=f"generation_config.json: {name}: got {high + 1}, .* to {high:,}"):
        resolve(model, {})


def test_what_was_given_and_nothing_else() -> None:
    assert given_options(_args()) == {"stop": [], "ignore_eos": False}
    some = given_options(_args("--temp", "0", "-n", "0", "-s", "3", "--stop", "a", "--stop", "b", "--ignore-eos"))
    assert some == {"temperature": 0.0, "max_new_tokens": 0, "stop": ["a", "b"], "ignore_eos": True}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"temperature": 0, "top_k": 5}, {"do_sample": False}),
        ({"temperature": 0.5}, {"do_sample": True, "temperature": 0.5}),
        ({"min_p": 0.5, "top_k": 0}, {"do_sample": True, "min_p": 0.5, "top_k": 0}),
        ({"num_beams": 3, "repetition_penalty": 2.0}, {"num_beams": 3, "repetition_penalty": 2.0}),
        ({"stop": ["a"]}, {"stop_strings": ["a"]}),
        ({"ignore_eos": True, "max_new_tokens": 5, "system": "s"}, {"eos_token_id": None}),
    ],
)
def test_options_of_the_call(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert call_options("T", {"stop": [], "ignore_eos": False, **given}) == {"tokenizer": "T", **expected}


@pytest.mark.parametrize(
    ("given", "in_file", "expected"),
    [
        ({}, {}, 15),
        ({}, {"max_new_tokens": 7}, 7),
        ({"max_new_tokens": 3}, {"max_new_tokens": 7}, 3),
        ({"max_new_tokens": 0}, {"max_new_tokens": 7}, 15),
        ({"max_new_tokens": 15}, {}, 15),
    ],
)
def test_how_long_a_text_may_get(given: dict[str, Any], in_file: dict[str, Any], expected: int) -> None:
    assert length_limit(_model(**in_file), given, 5) == expected


def test_a_prompt_that_fills_the_context_or_goes_far_beyond() -> None:
    assert length_limit(_model(), {"max_new_tokens": 0}, 19) == 1
    full = "prompt: got 20 tokens, expected fewer than 20, the context of here; shorten it"
    far = "prompt: got 201 tokens, expected at most 200, 10 times the context of here; shorten it"
    given: list[dict[str, int]] = [{}, {"max_new_tokens": 0}, {"max_new_tokens": 3}]
    for tokens, said, refused in ((20, full, given[:2]), (201, far, given)):
        for one in refused:
            with pytest.raises(ValueError, match=said):
                length_limit(_model(), one, tokens)


def test_more_tokens_than_the_context_are_announced() -> None:
    with pytest.warns(UserWarning, match="-n 90: prompt and new tokens go beyond the context of 20 tokens, past which"):
        assert length_limit(_model(), {"max_new_tokens": 90}, 5) == 90


@pytest.mark.parametrize(
    ("ids", "stopped", "full", "ignore", "in_file", "expected"),
    [
        ([5], False, True, False, {}, "length"),
        ([5, 1], False, True, False, {}, "eos"),
        ([5, 1], False, True, True, {}, "length"),
        ([5, 1], False, False, False, {"eos_token_id": [7, 5]}, "stop"),
        ([5, 7], False, False, False, {"eos_token_id": [7, 5]}, "eos"),
        ([5, 1], True, True, False, {}, "stop"),
        ([], False, False, False, {}, "stop"),
    ],
)
def test_why_a_text_ends(
    ids: list[int], stopped: bool, full: bool, ignore: bool, in_file: dict[str, Any], expected: str
) -> None:
    transcript: Any = SimpleNamespace(ids=ids, stopped=stopped)
    assert finish_reason(_model(**in_file), transcript, full, {"ignore_eos": ignore}) == expected


def test_a_line_of_json() -> None:
    transcript: Any = SimpleNamespace(ids=[1, 2], text="b", finish_reason="eos", prompt_tokens=4)
    assert result_fields(transcript, 9, echo="a") == {
        "text": "ab",
        "finish_reason": "eos",
        "prompt_tokens": 4,
        "generated_tokens": 2,
        "seed": 9,
    }


def test_templates() -> None:
    tokenizer: Any = SimpleNamespace(
        encode=lambda text, add_special_tokens=True: [len(text), add_special_tokens],
        apply_chat_template=lambda messages, **_: "".join(f"{m['role']}: {m['content']};" for m in messages),
    )
    assert encode(tokenizer, "ab") == ("ab", [2, True])
    assert encode(tokenizer, "ab", chat_messages("ab", "s")) == ("system: s;user: ab;", [19, False])
    assert encode(tokenizer, "ab", chat_messages("ab", None))[0] == "user: ab;"
    for error in (ValueError("m: refuses"), CheckpointError("m: fails")):  # status 2, as any input that is not taken
        tokenizer.apply_chat_template = Mock(side_effect=error)
        with pytest.raises(UsageError, match=f"^{error}$"):
            encode(tokenizer, "ab", chat_messages("ab", "s"))


def test_every_number_is_a_flag_and_says_what_turns_it_off() -> None:
    args = build_parser().parse_args(["generate", "x"])
    assert {getattr(args, name) for name in NUMBERS} == {None}
    assert [name for name, number in NUMBERS.items() if not number.off] == ["seed"]
