"""Pieces of text: stops, speeds, progress."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refdiff
from refdiff.cli import terminal
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


def test_speeds(tokenizer: refdiff.Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 12.5, 13.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    transcript = Transcript(tokenizer, [], None)
    transcript.put(np.array([[0, 5, 6, 7]]))
    assert transcript.prompt_speed is None
    transcript.put(np.array([8]))
    assert transcript.speed is None
    transcript.put(np.array([8]))
    assert transcript.speed == 2.0
    transcript.put(np.array([[8, 9, 10]]))
    assert transcript.prompt_speed == 2.0
    assert transcript.speed == 4.0
    assert transcript.prompt_tokens == 4


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("step", "until_text", "said"),
    [
        (lambda t: None, True, "reading the prompt: 0 of 3,000 tokens"),
        (lambda t: t.progress("prompt", 2048, 3000), True, "reading the prompt: 2,048 of 3,000 tokens"),
        (lambda t: t.progress("text", 7, 128), True, "generating: 7 of at most 128 tokens"),
        (lambda t: t.put(np.array([5])), False, "generating: 1 tokens"),
    ],
)
def test_what_takes_long_is_shown_with_tokens_done(
    step: Callable[[Transcript], None], until_text: bool, said: str, tokenizer: refdiff.Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(terminal, "AFTER", 0.0)
    monkeypatch.setattr("sys.stderr", seen := Terminal())
    transcript = Transcript(tokenizer, [], lambda piece: None)
    transcript.put(np.zeros((1, 3000), dtype=np.int64))
    with transcript.progress_shown(until_text=until_text):
        step(transcript)
        deadline = time.monotonic() + 20
        while f"\r{said} ... " not in seen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        transcript.put(np.array([tokenizer.encode("a", add_special_tokens=False)[0]]))
        assert seen.getvalue().endswith("\r\x1b[K") == until_text, "gone when text comes"
    assert f"\r{said} ... " in seen.getvalue()
