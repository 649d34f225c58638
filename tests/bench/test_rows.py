"""How rows are spelled."""

from __future__ import annotations

import re

import pytest

from refdiff.bench.rows import ALL, KINDS, QUICK, QUICK_TRAIN, TRAIN, Row, parse_rows


def test_rows_are_read() -> None:
    assert parse_rows("prefill:512, decode:128x8,load,train:3m,decode:128x8") == [
        Row("prefill", 512),
        Row("decode", 128, 8),
        Row("load"),
        Row("train", model="3m"),
    ]


@pytest.mark.parametrize("row", [*ALL, *QUICK, *TRAIN, *QUICK_TRAIN], ids=lambda row: row.spelled)
def test_what_is_spelled_is_read(row: Row) -> None:
    assert parse_rows(row.spelled) == [row]


def test_every_kind_is_measured_by_default() -> None:
    assert {row.kind for row in [*ALL, *TRAIN]} == set(KINDS)
    assert {row.kind for row in [*QUICK, *QUICK_TRAIN]} == set(KINDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed", "row 'speed' is none of those known: cold, load, prefill"),
        ("", "row '' is none of those known"),
        ("prefill", "row 'prefill' needs a number of tokens from 1 to 1000000, as in prefill:128"),
        ("prefill:0", "needs a number of tokens from 1"),
        ("prefill:2000000", "needs a number of tokens from 1"),
        ("prefill:abc", "needs a number of tokens from 1"),
        ("load:5", "row 'load:5' has a size, but load takes none"),
        ("product:4x2", "a number of rows is for prefill, decode, memory"),
        ("decode:4x0", "from 1 to 1024"),
        ("train:5", "row 'train:5' needs the size of a model, tiny or 3m or 30m, as in train:3m"),
        ("train", "needs the size of a model"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_rows(text)


@pytest.mark.parametrize(
    ("spelled", "title"),
    [
        ("cold", "start to first token"),
        ("load", "load"),
        ("lookup", "prompt lookup, a copy"),
        ("edit", "prompt lookup, an edit"),
        ("prefill:512", "prefill 512"),
        ("decode:128x8", "decode 128, 8 rows"),
        ("product:1", "product, 1 token"),
        ("product:8", "product, 8 tokens"),
        ("train:30m", "training step, 30m"),
    ],
)
def test_titles(spelled: str, title: str) -> None:
    assert parse_rows(spelled)[0].title == title


def test_who_needs_a_checkpoint() -> None:
    assert [row.needs_model for row in parse_rows("train:3m,product:4,cold,prefill:4")] == [False, False, True, True]
