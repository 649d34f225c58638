"""Labels: everything in a token is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import refdiff
from refdiff.viz.maps import escape_invisible, token_labels


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" king", "·king"),
        ("a\n\tb", "a↵⇥b"),
        ("\x1b\x00\x7f\r", "\\x1b\\x00\\x7f\\r"),
        ("\u202eabc", "\\u202eabc"),
        ("\u200b", "\\u200b"),
        ("\u2028", "\\u2028"),
        ("\xa0", "\\xa0"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
        ("é日😀<b>", "é日😀<b>"),
    ],
)
def test_by_hand(text: str, shown: str) -> None:
    assert escape_invisible(text) == shown


@given(st.text())
def test_labels_are_of_one_line_and_leave_ink(text: str) -> None:
    label = escape_invisible(text)
    assert bool(label) == bool(text)
    assert len(label.splitlines()) <= 1
    assert not any(letter.isspace() for letter in label)


def test_of_a_tokenizer(tiny_checkpoint: Path) -> None:
    tokenizer = refdiff.Tokenizer.from_pretrained(tiny_checkpoint)
    ids = tokenizer.encode("h 日")
    assert token_labels(tokenizer, ids) == ["<s>", "h", "·", "\\xe6", "\\x97", "\\xa5"]
    assert token_labels(tokenizer.backend, ids) == token_labels(tokenizer, ids)
    assert token_labels(tokenizer, [9999]) == ["[9999]"]
