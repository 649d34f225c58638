"""What is measured, by a side whose steps take known times, and how much work that is, counted by hand."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.backends import Backend, decoder, overlay
from refdiff.bench import rows
from refdiff.bench.inputs import PATTERN, Ids, random_ids
from refdiff.bench.rows import LOOKUP_PROMPT, Arrivals, parse_rows
from refdiff.bench.sides import BenchSettings, Side
from refdiff.bench.sizes import TRAINED
from refdiff.errors import CheckpointError


class FakeSide(Side):
    """A side on a clock of its own: a prompt takes 5 s, each pass 2 s, each training step 3 s.

    It counts on from the last token.

    `did` holds what has been called; it waits 0.5 s for its device.
    """

    def __init__(self, settings: BenchSettings | None = None) -> None:
        super().__init__(settings or BenchSettings("somewhere"))
        self.now, self.itemsize = 100.0, 4
        self.clock = lambda: self.now
        self.wait = lambda: self.pass_time(0.5)
        self.did: list[Any] = []

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def open(self, folder: str) -> None:
        self.now += 7
        self.did.append(("open", folder))

    def generate(self, ids: Ids, streamer: Any, *, max_new_tokens: int, **options: Any) -> Ids:
        """Two tokens come a pass where a bias says which they are."""
        self.did.append(("generate", ids, max_new_tokens))
        streamer.put(ids)
        text = ids[:, -1:] + 1 + np.arange(max_new_tokens)
        if bias := options.get("sequence_bias"):
            said = ids[0].tolist()
            for _ in range(max_new_tokens):
                said.append(next(after for *before, after in bias if said[-len(before) :] == before))
            text = np.array([said[-max_new_tokens:]])
        self.now += 5
        streamer.put(text[:, :1])
        together = 2 if bias else 1
        for start in range(1, max_new_tokens, together):
            self.now += 2
            streamer.put(text[:, start : start + together])
        streamer.end()
        return text

    def trainer(self, folder: str, ids: Ids) -> Callable[[], float]:
        self.did.append(("trainer", ids))

        def step() -> float:
            self.now += 3
            return 1.5

        return step


# 2 layers; q 8×5... are (8, 6), k and v (4, 6), o (6, 8), gate and up (7, 6), down (6, 7)
CONFIG = refdiff.DiffLlamaConfig(
    vocab_size=499,
    hidden_size=6,
    intermediate_size=7,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=2,
)
LAYER = 8 * 6 + 2 * 4 * 6 + 6 * 8 + 3 * 7 * 6
HEAD = 499 * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CONFIG.save_pretrained(tmp_path_factory.mktemp("config")).parent


def _measured(side: Side, spelled: str) -> dict[str, Any]:
    (row,) = parse_rows(spelled)
    _, answer = islice(side.measure(row), 2)
    return answer


def test_the_clock_runs_until_the_device_is_done() -> None:
    """Before the work it waits too, so that what was begun earlier is not counted: 0.5 s not counted, 0.5 s counted."""
    side = FakeSide()
    assert side.time_call(lambda: side.pass_time(3)) == (3.5, None)
    assert side.now == 104.0


def test_load_and_prefill(folder: Path) -> None:
    side = FakeSide(BenchSettings(str(folder)))
    assert _measured(side, "load") == {"seconds": 7.5}
    answer = _measured(side, "prefill:200x3")
    _, opened, (_, warm, _), (_, ids, new) = side.did
    assert (opened, new) == (("open", str(folder)), 1)
    np.testing.assert_array_equal(ids, random_ids(3, 200, 499))
    np.testing.assert_array_equal(warm, ids[:, :128])
    # 200 queries see 1 + 2 + … + 200 = 20100 keys; a score of 4 heads is 4 · 2 · 2 operations, and so are its values
    work = 3 * (2 * 200 * 2 * LAYER + 2 * 20100 * (2 * 4 * 2 + 2 * 4 * 2) + 2 * HEAD)
    tokens = (ids[:, -1:] + 1).tolist()
    assert answer == {"seconds": 5.5, "amount": 600, "work": work, "tokens": tokens}


# after 10 tokens the next three see 11, 12 and 13; a token has 2 layers · (k and v) · 2 heads · 2 numbers
MATRICES = 3 * (2 * LAYER + HEAD)
CACHED = (11 + 12 + 13) * 2 * 2 * 2 * 2


@pytest.mark.parametrize(("dtype", "itemsize", "cached"), [("float32", 4, 4), ("float64", 8, 8), ("float32", 2, 4)])
def test_decoding_is_timed_after_the_first_token(folder: Path, dtype: str, itemsize: int, cached: int) -> None:
    side = FakeSide(BenchSettings(str(folder), dtype=dtype, steps=3))
    side.itemsize = itemsize
    answer = _measured(side, "decode:10x5")
    ids = random_ids(5, 10, 499)
    assert (answer["seconds"], answer["amount"]) == (3 * 2, 3 * 5)
    assert answer["work"] == itemsize * MATRICES + cached * 5 * CACHED
    np.testing.assert_array_equal(answer["tokens"], ids[:, -1:] + 1 + np.arange(4))
    assert json.loads(json.dumps(answer)) == answer


def test_prompt_lookup_repeats_its_prompt_and_is_timed_after_the_first_token(folder: Path) -> None:
    side = FakeSide(BenchSettings(str(folder), lookup_tokens=4))
    answer = _measured(side, "lookup")
    _, ids, _ = side.did[-1]
    assert ids.shape == (1, LOOKUP_PROMPT)
    pattern = ids[0, :PATTERN].tolist()
    assert len(set(pattern)) == PATTERN
    np.testing.assert_array_equal(ids[0, PATTERN:-1], ids[0, : -PATTERN - 1])
    assert ids[0, -1] not in pattern, "what follows it could be guessed before the first token"
    assert answer == {"seconds": 2 * 2, "amount": 4, "passes": 2, "tokens": [pattern[:5]]}


def test_lookup_that_gives_another_text_or_guesses_too_early_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = FakeSide(BenchSettings(str(folder), lookup_tokens=4))
    right = side.generate
    monkeypatch.setattr(side, "generate", lambda *given, **options: right(*given, **options)[:, ::-1])
    with pytest.raises(ValueError, match="got another text than sequence_bias forces"):
        _measured(side, "lookup")
    monkeypatch.undo()
    monkeypatch.setattr(Arrivals, "put", lambda self, value: (self.end(), self.counts.append(2)))
    with pytest.raises(ValueError, match="got 2 tokens from the first pass"):
        _measured(side, "lookup")


def test_training_is_three_passes_with_all_logits() -> None:
    side = FakeSide(BenchSettings(batch=2, context=5))
    answer = _measured(side, "train:tiny")
    assert (answer["seconds"], answer["loss"], answer["amount"]) == (3.5, 1.5, 10)
    assert answer["bytes"] > 1_000_000
    np.testing.assert_array_equal(side.did[0][1], random_ids(2, 5, 2048))
    assert answer["work"] == 3 * 2 * rows.operations(refdiff.DiffLlamaConfig(**TRAINED["tiny"]), 5, 5)
    assert rows.operations(CONFIG, 5, 5) == 2 * 5 * 2 * LAYER + 2 * 15 * 32 + 5 * 2 * HEAD


def test_the_operation_count_of_a_pass_is_that_of_the_model() -> None:
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
    backend.fast_diffllama = partial(decoder.fast_diffllama, steps=decoder.Steps(backend.ops))
    for keep, last_token_only in ((1, True), (5, False)):
        done.clear()
        model(random_ids(3, 5, 13), use_cache=True, logits_to_keep=keep)
        others = 3 * (keep - 1) * 2 * HEAD  # a plain pass makes logits of one token too
        assert sum(done) - others == 3 * rows.operations(CONFIG, 5, 1, last_token_only=last_token_only)


def test_unavailable_memory_is_an_error_of_the_memory_row_alone(folder: Path) -> None:
    side = FakeSide(BenchSettings(str(folder), batch=2, context=5))
    side.peak = lambda: None
    with pytest.raises(RuntimeError, match="this system does not report the peak memory"):
        _measured(side, "memory:4")
    assert _measured(side, "train:tiny")["bytes"] is None


def test_the_start_of_a_command_is_what_a_user_runs(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(rows, "time_first_output", lambda command: ran.append(command) or (2.0, "a"))
    side = FakeSide(BenchSettings(str(tiny_checkpoint)))
    side.command = lambda prompt: ["-c", prompt]
    assert _measured(side, "cold") == {"seconds": 2.0, "text": "a"}
    assert ran == [[sys.executable, "-c", "Once upon a tim"]] * 2  # a byte a token, and <s>; the first warms up
    with pytest.raises(CheckpointError):
        _measured(FakeSide(), "cold")


def test_first_output_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes its second line when the clock has been read for the second time."""
    there = tmp_path / "read"
    code = f"""
import pathlib, sys, time
time.sleep(0.2)
print("a", flush=True)
for _ in range(6000):
    if pathlib.Path({str(there)!r}).exists():
        sys.exit(print("あ"))
    time.sleep(0.01)
"""
    read: list[float] = []

    def clock() -> float:
        read.append(time.perf_counter())
        if len(read) == 2:
            there.touch()
        return read[-1]

    monkeypatch.setattr(rows, "time", SimpleNamespace(perf_counter=clock))
    seconds, text = rows.time_first_output([sys.executable, "-X", "utf8", "-c", code])
    assert text == "a\nあ"
    assert seconds == read[1] - read[0] >= 0.2
    for code, how in (
        ("import sys; sys.exit('one\\nthe reason')", "ended with status 1: the reason"),
        ("pass", "ended with status 0"),
        ("print(1); raise SystemExit(3)", "ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", r"was killed by signal 9 \(out of memory\?\)"),
    ):
        with pytest.raises(RuntimeError, match=f"^its command {how}$"):
            rows.time_first_output([sys.executable, "-c", code])
