"""How rows are spelled, and which there are."""

from __future__ import annotations

import re

import pytest

from refdiff.bench.rows import ALL, KINDS, QUICK, BenchRow, parse_rows


def test_rows_are_read() -> None:
    read = parse_rows("prefill:512, decode:128x8,load,train:3m,decode:128x8")
    assert read == [
        BenchRow("prefill", 512),
        BenchRow("decode", 128, 8),
        BenchRow("load"),
        BenchRow("train", model="3m"),
    ]


def test_parsing_the_spelling_of_a_row_gives_the_row() -> None:
    for row in [*ALL, *QUICK, *parse_rows("train:3m,train:30m,train:tiny")]:
        assert parse_rows(row.spelled) == [row]
    rows = parse_rows("decode:128x8,train:30m")
    titles = "decode 128, batch 8; training step, 30m"
    assert "; ".join(row.title for row in rows) == titles


def test_every_kind_but_training_is_measured_by_default() -> None:
    assert {row.name for row in ALL} == {row.name for row in QUICK} == set(KINDS) - {"train"}
    assert {name for name, kind in KINDS.items() if not kind.needs_model} == {"train"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speed", "cold, load, prefill"),
        ("prefill", "prefill:TOKENS[xN], as in prefill:128"),
        ("prefill:0", "prefill:TOKENS[xN]"),
        ("prefill:2000000", "prefill:TOKENS[xN]"),
        ("decode:4x0", "decode:TOKENS[xN]"),
        ("load:", "load"),
        ("train:5", "train:MODEL; MODEL is tiny or 3m or 30m"),
    ],
)
def test_errors(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {text!r}, expected {expected}")):
        parse_rows(f"cold,{text}")
