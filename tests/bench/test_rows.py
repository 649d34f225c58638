"""How rows are spelled, and how much work each is, counted by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import refdiff
from refdiff.backends import Backend, decoder, overlay
from refdiff.bench.inputs import random_ids
from refdiff.bench.rows import ALL, KINDS, ORACLE_KINDS, QUICK, QUICK_TRAIN, TRAIN, Row, Work, parse_rows, work_of
from refdiff.bench.side import Settings


def test_rows_are_read() -> None:
    assert parse_rows("prefill:512, decode:128x8,load,train:3m,decode:128x8") == [
        Row("prefill", 512),
        Row("decode", 128, 8),
        Row("load"),
        Row("train", model="3m"),
    ]


def test_what_is_spelled_is_read() -> None:
    for row in [*ALL, *QUICK, *TRAIN, *QUICK_TRAIN, *parse_rows("check:1024x32,diagnose:256")]:
        assert parse_rows(row.spelled) == [row]
    titles = (
        "decode 128, 8 rows",
        "product, 1 token",
        "training step, 30m",
        "check 1024, 32 heads",
        "diagnose 256, 1 head",
    )
    rows = parse_rows("decode:128x8,product:1,train:30m,check:1024x32,diagnose:256")
    assert [row.title for row in rows] == [*titles]


def test_every_kind_is_measured_by_default() -> None:
    of_models = set(KINDS) - set(ORACLE_KINDS)
    assert {row.kind for row in [*ALL, *TRAIN]} == of_models
    assert {row.kind for row in [*QUICK, *QUICK_TRAIN]} == of_models
    assert {name for name, kind in KINDS.items() if not kind.needs_model} == {"product", "train", *ORACLE_KINDS}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speed", "cold, load, prefill"),
        ("prefill", "prefill:TOKENS[xN], as in prefill:128"),
        ("prefill:0", "prefill:TOKENS[xN]"),
        ("prefill:2000000", "prefill:TOKENS[xN]"),
        ("decode:4x0", "decode:TOKENS[xN]"),
        ("load:", "load"),
        ("product:4x2", "product:TOKENS, as in product:128"),
        ("train:5", "train:MODEL; MODEL is tiny or 3m or 30m"),
    ],
)
def test_errors(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {text!r}, expected {expected}")):
        parse_rows(f"cold,{text}")


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


def _work(spelled: str, **settings: Any) -> Work:
    return work_of(parse_rows(spelled)[0], CONFIG, Settings(**{"steps": 3, "batch": 2, "context": 5, **settings}))


def test_prefill() -> None:
    # 5 queries see 1 + 2 + 3 + 4 + 5 = 15 keys; a score of 4 heads is 4 · 2 · 2 operations, and so are its values
    once = 2 * 5 * 2 * LAYER + 2 * 15 * (2 * 4 * 2 + 2 * 4 * 2) + 2 * HEAD
    # of the last layer the first four tokens need keys and values alone; they see 1 + 2 + 3 + 4 = 10 keys
    spared = 2 * 4 * (LAYER - 2 * 4 * 6) + 10 * (2 * 4 * 2 + 2 * 4 * 2)
    work = _work("prefill:5x3")
    assert work == Work("tok/s", "sgemm", 15, 3 * once, spared=3 * spared)
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


# after 10 tokens the next three see 11, 12 and 13; a token has 2 layers · (k and v) · 2 heads · 2 numbers
MATRICES = 3 * (2 * LAYER + HEAD)
CACHED = (11 + 12 + 13) * 2 * 2 * 2 * 2


def test_decode() -> None:
    assert _work("decode:10") == Work("tok/s", "gemv", 3, 4 * CACHED, MATRICES)
    assert _work("decode:10x5") == Work("tok/s", "gemv", 15, 4 * 5 * CACHED, MATRICES)
    assert _work("decode:10", dtype="float64").needed == 8 * CACHED
    assert _work("decode:10").counted(itemsize=2) == 2 * MATRICES + 4 * CACHED


def test_a_device_has_ceilings_of_its_own_and_a_cache_in_float32() -> None:
    work = _work("decode:10", backend="cupy", dtype="bfloat16")
    assert work == Work("tok/s", "copy", 3, 4 * CACHED, MATRICES)
    assert _work("prefill:5", backend="cupy").ceiling == "matmul"


def test_training_is_three_passes_with_all_logits() -> None:
    one = 2 * 5 * 2 * LAYER + 2 * 15 * 32
    assert _work("train:3m") == Work("tok/s", "sgemm", 10, 3 * (2 * one + 10 * 2 * HEAD))


def test_other_work() -> None:
    numbers = 2048 * 8192
    assert _work("product:16") == Work("GB/s", "gemv", 4 * numbers / 1e9, 4 * numbers)
    assert _work("product:17") == Work("GFLOP/s", "sgemm", 34 * numbers / 1e9, 34 * numbers)
    assert [_work(kind).unit for kind in ("cold", "load", "memory:5", "lookup", "check:5")] == [
        "s", "s", "B", "tok/s", "s",
    ]  # fmt: skip
    assert [_work(kind, looked_up=6).rate(2.0) for kind in ("cold", "memory:5", "edit")] == [2.0, 2.0, 3.0]
    assert _work("product:1").rate(2.0) == 2 * numbers / 1e9
    with pytest.raises(ValueError, match="decode:10 needs a model"):
        work_of(parse_rows("decode:10")[0], None, Settings())
