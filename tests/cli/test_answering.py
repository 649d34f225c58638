"""The ranges of flags, and how long a text may get."""

from __future__ import annotations

import argparse
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.cli.answering import NUMBERS, length_limit
from refdiff.errors import CheckpointError
from refdiff.generation.options import resolve
from tests.generation.fakes import FakeModel


def _model(**generation: Any) -> Any:
    return SimpleNamespace(
        source="here", generation_config=generation, config=SimpleNamespace(max_position_embeddings=20, eos_token_id=1)
    )


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "seed"])
def test_a_flag_and_a_checkpoint_have_one_range(name: str) -> None:
    model, number = FakeModel(), NUMBERS[name]
    low, high = number.kind(number.low), number.kind(number.high)
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


@pytest.mark.parametrize(
    ("given", "in_file", "expected"),
    [
        ({}, {}, 15),
        ({}, {"max_new_tokens": 7}, 7),
        ({"max_new_tokens": 3}, {"max_new_tokens": 7}, 3),
        ({"max_new_tokens": 0}, {"max_new_tokens": 7}, 15),
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
