"""The ranges of flags, how long a text may get, and where a stop string ends it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refdiff
from refdiff.cli.answering import NUMBERS, encode, length_limit
from refdiff.cli.transcript import Transcript
from refdiff.errors import CheckpointError
from refdiff.generation.options import resolve
from tests.generation.fakes import FakeModel


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "seed"])
def test_a_flag_and_a_checkpoint_have_one_range(name: str) -> None:
    model, number = FakeModel(max_position_embeddings=2**30), NUMBERS[name]
    low, high = number.kind(number.low), number.kind(number.high)
    low = np.nextafter(low, math.inf).item() if number.above else low
    ends = [(high, math.inf)] + [(low, -math.inf)] * (name != "max_new_tokens")  # -n 0: up to the context length
    for end, direction in ends:
        model.generation_config = {name: end}
        assert getattr(resolve(model, {}), name) == number.check(end) == end
        beyond = np.nextafter(end, direction).item() if number.kind is float else end + (1 if direction > 0 else -1)
        with pytest.raises(argparse.ArgumentTypeError, match=f"got {beyond!r}, expected "):
            number.check(beyond)
        model.generation_config = {name: beyond}
        with pytest.raises(CheckpointError, match=f"generation_config.json: {name}: got {beyond!r}, expected "):
            resolve(model, {})


def test_a_prompt_that_fills_the_context_or_goes_far_beyond() -> None:
    config = SimpleNamespace(max_position_embeddings=20, eos_token_id=1)
    model: Any = SimpleNamespace(source="here", generation_config={}, config=config)
    assert length_limit(model, {"max_new_tokens": 0}, 19) == 1
    full = "prompt: got 20 tokens, expected fewer than 20, the context of here; shorten it"
    flags: list[dict[str, int]] = [{}, {"max_new_tokens": 0}]
    for options in flags:
        with pytest.raises(ValueError, match=full):
            length_limit(model, options, 20)
    tokenizer = Mock()
    tokenizer.encode.side_effect = lambda text: [1] * len(text)  # fewer characters than the first part has
    assert len(encode(model, tokenizer, "a" * 200)[1]) == 200
    far = "prompt: got 201 tokens, expected at most 200, 10 times the context of here; shorten it"
    with pytest.raises(ValueError, match=far):
        encode(model, tokenizer, "a" * 201)


def test_of_a_prompt_far_beyond_the_context_only_the_first_part_is_tokenized() -> None:
    model: Any = SimpleNamespace(source="here", config=SimpleNamespace(max_position_embeddings=20))
    tokenizer = Mock()
    tokenizer.encode.side_effect = lambda text: [1] * (len(text) // 10)  # 320 tokens of the first 3200 characters
    far = "prompt: got 320 tokens in its first 3,200 characters, expected at most 200, 10 times the context of here"
    with pytest.raises(ValueError, match=far):
        encode(model, tokenizer, "a" * 10**6)
    tokenizer.encode.assert_called_once()
    with pytest.raises(ValueError, match="prompt: got 320 tokens, expected at most 200"):
        encode(model, tokenizer, "a" * 3200)
    tokenizer.encode.side_effect = lambda text: [1] * (len(text) // 1000)  # such as long runs of spaces
    assert len(encode(model, tokenizer, "a" * 10**5)[1]) == 100


def test_of_a_prompt_far_beyond_a_long_context_only_the_first_parts_are_tokenized() -> None:
    model: Any = SimpleNamespace(source="here", config=SimpleNamespace(max_position_embeddings=131_072))
    tokenizer = Mock()
    tokenizer.encode.side_effect = lambda text: [1] * (len(text) // 4)
    far = "prompt: got 1,500,000 tokens in its first 6,000,000 characters, expected at most 1,310,720, 10 times the "
    with pytest.raises(ValueError, match=far):
        encode(model, tokenizer, "a" * 10**7)
    assert [len(call.args[0]) for call in tokenizer.encode.call_args_list] == [10**6] * 6


def test_a_long_prompt_that_fits_is_tokenized_once_as_a_whole() -> None:
    model: Any = SimpleNamespace(source="here", config=SimpleNamespace(max_position_embeddings=131_072))
    tokenizer, lengths = Mock(), []

    def count(text: str) -> list[int]:
        lengths.append(len(text))
        return list(range(len(text) // 4))

    tokenizer.encode.side_effect = count
    text = "a" * 2_500_000
    assert encode(model, tokenizer, text) == (text, list(range(625_000)))
    assert lengths == [10**6, 10**6, 2_500_000]
    tokenizer.encode.side_effect = [[1], ValueError("this text has no tokens")]
    with pytest.raises(ValueError, match="this text has no tokens"):
        encode(model, tokenizer, "a" * 1_500_000)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> refdiff.Tokenizer:
    return refdiff.Tokenizer.from_pretrained(tiny_checkpoint)


def test_the_speeds_of_a_beam_search_are_those_of_its_steps(
    tokenizer: refdiff.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It puts its tokens at the end, when the time of the prompt is long over."""
    clock = Mock(perf_counter=Mock(side_effect=[0.0, 2.0, 6.0, 10.0]))
    monkeypatch.setattr("refdiff.cli.transcript.time", clock)
    transcript = Transcript(tokenizer, [], None)
    transcript.put(np.array([[5, 6, 7, 8]]))
    transcript.progress("text", 1, 3)
    transcript.progress("text", 2, 3)
    transcript.put(np.array([5, 6, 7]))
    assert (transcript.prompt_speed, transcript.speed) == (2.0, 0.25)


@given(
    text=st.text("abあ", max_size=10),
    stops=st.lists(st.text("abあ", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_the_text_ends_before_the_first_stop(tokenizer: refdiff.Tokenizer, text: str, stops: list[str]) -> None:
    pieces: list[str] = []
    transcript = Transcript(tokenizer, stops, pieces.append)
    transcript.put(np.array([[0]]))
    for token in tokenizer.encode(text, add_special_tokens=False):
        transcript.put(np.array([token]))
    transcript.close("length")
    at = [text.find(stop) for stop in stops if stop in text]
    # The stop that is complete first ends the text, where it begins.
    ends = sorted((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text)
    assert transcript.stopped == bool(at)
    if at:
        complete = ends[0][0]
        assert transcript.text == text[: min(begin for end, begin in ends if end == complete)]
    else:
        assert transcript.text == text
    assert "".join(pieces) == transcript.text
