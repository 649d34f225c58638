"""refdiff as it is measured does what a user's calls do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.backends.numpy.thread_pool import Workers
from refdiff.backends.numpy.tuning import Tuning
from refdiff.bench.model_side import edited, random_ids, repetition
from refdiff.bench.refdiff_side import RefdiffSide, StoredSide
from refdiff.bench.side import Settings
from refdiff.model.cache import KVCache


@pytest.fixture
def side(tiny_checkpoint: Path) -> RefdiffSide:
    side = RefdiffSide(Settings(str(tiny_checkpoint), 1))
    assert side.open()["seconds"] > 0
    return side


def _greedy(folder: Path, ids: np.ndarray, new: int) -> list[list[int]]:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder)
    made = model.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None)
    rows: list[list[int]] = made[:, ids.shape[1] :].tolist()
    return rows


def test_tokens_are_those_of_generate(side: RefdiffSide, tiny_checkpoint: Path) -> None:
    ids = random_ids(2, 9, side.vocab_size)
    expected = _greedy(tiny_checkpoint, ids, 4)
    read = side.prefill(9, 2)
    assert read["tokens"] == [row[0] for row in expected]
    assert read["sparing"], "of the last layer it computes what the next token needs"
    first = side.decode(9, 2, steps=3)
    assert first["tokens"] == expected
    assert first["seconds"] > 0
    assert side.decode(9, 2, steps=2)["tokens"] == [row[:3] for row in expected], "the cache was not rewound"


@pytest.mark.parametrize("make", [repetition, edited])
def test_lookup_repeats_its_prompt_in_few_passes(
    side: RefdiffSide, make: Callable[..., tuple[Any, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    forward = type(side.model).__call__

    def counted(self: object, ids: np.ndarray, **given: object) -> object:
        calls.append(ids.shape[1])
        return forward(self, ids, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(type(side.model), "__call__", counted)
    answer = side.lookup(60, steps=50, edit=make is edited)
    assert answer["tokens"] == [make(60, 51, side.vocab_size)[1].tolist()]
    assert answer["passes"] == len(calls) - 1, "all but the first, which reads the prompt"
    assert answer["passes"] <= (50 / 5 if make is repetition else 50 / 2)
    assert calls[0] == 60


@pytest.mark.parametrize("size", [9, 300])
def test_the_cache_is_as_large_as_that_of_generate(
    side: RefdiffSide, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[KVCache] = []
    made = KVCache.__init__

    def noted(self: KVCache, *given: object, **options: object) -> None:
        caches.append(self)
        made(self, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(KVCache, "__init__", noted)
    side.decode(size, 2, steps=1, capacity=5)
    side.decode(size, 2, steps=5)
    ids = random_ids(2, size, side.vocab_size)
    side.model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    ours, theirs = caches
    assert [x.shape for x in ours.buffers] == [x.shape for x in theirs.buffers]


def test_a_product_of_one_token_is_multiplied_as_in_a_pass_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS has all its threads then, where these are many, and those of Python have the cores otherwise."""
    seen: list[bool] = []
    running = Workers.running
    monkeypatch.setattr(
        Workers,
        "running",
        lambda self, *, owns_cores=True: seen.append(owns_cores) or running(self, owns_cores=owns_cores),
    )
    monkeypatch.setattr("refdiff.bench.side.CACHES", 1)
    side = RefdiffSide(Settings(None, Tuning.python_threads + 1))
    for size in (1, 4):
        side.product(size, outputs=2048, inputs=2048, least=0)
    assert seen == [False, True]


def test_memory(tiny_checkpoint: Path) -> None:
    answer = RefdiffSide(Settings(str(tiny_checkpoint), 1)).answer("memory", size=9, batch=2, steps=3)
    assert answer["tokens"] == _greedy(tiny_checkpoint, random_ids(2, 9, 259), 4)
    assert answer["bytes"] > 10_000_000


def test_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.bench.side.CACHES", 1)
    weight = np.random.default_rng(0).standard_normal((24, 31), np.float32)
    for size in (1, 5):
        x = np.random.default_rng(1).standard_normal((size, 31), np.float32)
        answer = RefdiffSide(Settings(None, 2)).product(size, outputs=24, inputs=31, least=0)
        np.testing.assert_allclose(answer["sample"], (x.astype(np.float64) @ weight.T)[-1, ::3], rtol=1e-5)


def test_training_goes_down(tiny_checkpoint: Path) -> None:
    side = RefdiffSide(Settings(None, 1))
    losses = [side.train(str(tiny_checkpoint), batch=2, context=11, vocab_size=259)["loss"] for _ in range(4)]
    ids = random_ids(2, 11, 259)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint)
    assert losses[0] == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-5)  # type: ignore[arg-type]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.01


def test_weights_stay_as_they_are_stored(tiny_checkpoint: Path, tmp_path: Path) -> None:
    refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path, dtype="bfloat16")
    sides = [kind(Settings(str(tmp_path), 1)) for kind in (RefdiffSide, StoredSide)]
    answers = []
    for side, bits in zip(sides, (32, 16), strict=True):
        side.open()
        assert side.model.params["model"]["layers"][0]["mlp"]["gate_proj"]["weight"].dtype.itemsize == bits // 8
        answer = side.decode(9, 2, steps=3)
        assert answer["itemsize"] == bits // 8
        answers.append(answer["tokens"])
    assert answers[0] == answers[1]
