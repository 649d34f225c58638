"""A text ends before the first stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refdiff
from refdiff.cli.transcript import Transcript


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> refdiff.Tokenizer:
    return refdiff.Tokenizer.from_pretrained(tiny_checkpoint)


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
