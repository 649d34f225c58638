"""How rows are spelled, and how much work each is, counted by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import refdiff
from refdiff.backends import Backend, decoder, overlay
from refdiff.bench.model_side import random_ids
from refdiff.bench.rows import ALL, KINDS, OF_ORACLE, ORACLE, QUICK, QUICK_TRAIN, TRAIN, Row, Work, parse_rows, work_of


def test_rows_are_read() -> None:
    assert parse_rows("prefill:512, decode:128x8,load,train:3m,decode:128x8") == [
        Row("prefill", 512),
        Row("decode", 128, 8),
        Row("load"),
        Row("train", model="3m"),
    ]


@pytest.mark.parametrize("row", [*ALL, *QUICK, *TRAIN, *QUICK_TRAIN, *ORACLE], ids=lambda row: row.spelled)
def test_what_is_spelled_is_read(row: Row) -> None:
    assert parse_rows(row.spelled) == [row]


def test_every_kind_is_measured_by_default() -> None:
    of_models = set(KINDS) - set(OF_ORACLE)
    assert {row.kind for row in [*ALL, *TRAIN]} == of_models
    assert {row.kind for row in [*QUICK, *QUICK_TRAIN]} == of_models
    assert {row.kind for row in ORACLE} == set(OF_ORACLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed", "got 'speed', expected cold, load, prefill"),
        ("", "got '', expected cold"),
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
        ("check:1024x32", "check 1024, 32 heads"),
        ("diagnose:256", "diagnose 256, 1 head"),
    ],
)
def test_titles(spelled: str, title: str) -> None:
    assert parse_rows(spelled)[0].title == title


def test_who_needs_a_checkpoint() -> None:
    assert [row.needs_model for row in parse_rows("train:3m,product:4,cold,prefill:4,check:4")] == [
        False, False, True, True, False,
    ]  # fmt: skip


# 2 layers; q 8×5... are (8, 6), k and v (4, 6), o (6, 8), gate and up (7, 6), down (6, 7)
CONFIG = refdiff.DiffLlamaConfig(
    vocab_size=13,
    hidden_size=6,
    intermediate_size=7,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=2,
)
LAYER = 8 * 6 + 2 * 4 * 6 + 6 * 8 + 3 * 7 * 6
HEAD = 13 * 6


def _work(spelled: str, steps: int = 3) -> Work:
    return work_of(parse_rows(spelled)[0], CONFIG, steps=steps, batch=2, context=5)


def test_prefill() -> None:
    # 5 queries see 1 + 2 + 3 + 4 + 5 = 15 keys; a score of 4 heads is 4 · 2 · 2 operations, and so are its values
    once = 2 * 5 * 2 * LAYER + 2 * 15 * (2 * 4 * 2 + 2 * 4 * 2) + 2 * HEAD
    # of the last layer the first four tokens need keys and values alone; they see 1 + 2 + 3 + 4 = 10 keys
    spared = 2 * 4 * (LAYER - 2 * 4 * 6) + 10 * (2 * 4 * 2 + 2 * 4 * 2)
    work = _work("prefill:5x3")
    assert work == Work("tok/s", "sgemm", tokens=15, operations=3 * once, spared=3 * spared)
    assert [work.counted(sparing=sparing) for sparing in (False, True)] == [3 * once, 3 * (once - spared)]
    assert _work("prefill:1").spared == 0


def test_a_sparing_pass_does_what_is_counted() -> None:
    """The operations of products and of what attention sees, as the model asks for them."""
    model = refdiff.DiffLlamaForCausalLM.from_config(CONFIG)
    done: list[int] = []

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **named: Any) -> Any:
            if name == "linear":
                done.append(2 * given[0].size // given[0].shape[-1] * named["weight"].size)
            if name == "diff_heads_hf":
                (B, H, T, d), S = given[0].shape, given[1].shape[2]
                done.append(B * H * 2 * 2 * d * (T * S - T * (T - 1) // 2))
            return function(*given, **named)

        return counting

    backend = Backend()
    model.backend, backend.ops = backend, overlay(backend.ops, wrap)
    model.ops = backend.ops
    backend.diffllama = partial(decoder.diffllama, steps=decoder.Steps(backend.ops))
    work = _work("prefill:5x3")
    for keep, sparing in ((1, True), (5, False)):
        done.clear()
        model(random_ids(3, 5, 13), use_cache=True, logits_to_keep=keep)
        others = 3 * (keep - 1) * 2 * HEAD  # a plain pass makes logits of one token too
        assert sum(done) - others == work.counted(sparing=sparing)


def test_decode() -> None:
    # after 10 tokens the next three see 11, 12 and 13; a token has 2 layers · (k and v) · 2 heads · 2 numbers
    read = 3 * 4 * (2 * LAYER + HEAD)
    cached = (11 + 12 + 13) * 2 * 2 * 2 * 2 * 4
    matrices = read // 4
    assert _work("decode:10") == Work("tok/s", "gemv", tokens=3, bytes=read + cached, matrices=matrices)
    assert _work("decode:10x5") == Work("tok/s", "gemv", tokens=15, bytes=read + 5 * cached, matrices=matrices)


def test_training_is_three_passes_with_all_logits() -> None:
    one = 2 * 5 * 2 * LAYER + 2 * 15 * 32
    assert _work("train:3m") == Work("tok/s", "sgemm", tokens=10, operations=3 * (2 * one + 10 * 2 * HEAD))


def test_products() -> None:
    assert _work("product:16") == Work("GB/s", "gemv", bytes=2048 * 8192 * 4, operations=2 * 2048 * 8192 * 16)
    assert _work("product:17").ceiling == "sgemm"


def test_double_precision_reads_twice_as_much() -> None:
    row = parse_rows("decode:10")[0]
    assert work_of(row, CONFIG, steps=3, itemsize=8).bytes == 2 * work_of(row, CONFIG, steps=3).bytes


def test_rates() -> None:
    work = Work("tok/s", "gemv", tokens=6, bytes=12_000_000_000, operations=4_000_000_000)
    assert work.rate(2.0) == 3.0
    assert work.counted() == 12_000_000_000
    assert Work("GFLOP/s", "sgemm", operations=4_000_000_000).rate(2.0) == 2.0
    assert Work("GFLOP/s", "sgemm", operations=4_000_000_000).counted() == 4_000_000_000
    assert Work("GB/s", "gemv", bytes=12_000_000_000).rate(2.0) == 6.0
    assert [Work(unit).rate(2.0) for unit in ("s", "B")] == [2.0, 2.0]
    assert [_work(kind).unit for kind in ("cold", "load", "memory:5", "lookup", "edit")] == [
        "s",
        "s",
        "B",
        "tok/s",
        "tok/s",
    ]


def test_a_model_is_needed() -> None:
    with pytest.raises(ValueError, match="decode:10 needs a model"):
        work_of(parse_rows("decode:10")[0], None, steps=1)
