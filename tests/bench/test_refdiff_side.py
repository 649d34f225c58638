"""refdiff as it is measured does what a user's calls do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import refdiff
from refdiff.backends.numpy.thread_pool import Workers
from refdiff.backends.numpy.tuning import Tuning
from refdiff.bench.inputs import edited, random_ids, repetition
from refdiff.bench.refdiff_side import RefdiffSide, StoredSide
from refdiff.bench.side import LOOKUP_PROMPT, Settings
from refdiff.model.cache import KVCache


def _side(folder: Path, **settings: int) -> RefdiffSide:
    side = RefdiffSide(Settings(str(folder), **settings))  # type: ignore[arg-type]
    assert side.load()["seconds"] > 0
    return side


def _greedy(folder: Path, ids: np.ndarray, new: int) -> list[list[int]]:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder)
    made = model.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None)
    rows: list[list[int]] = made[:, ids.shape[1] :].tolist()
    return rows


def test_tokens_are_those_of_generate(tiny_checkpoint: Path) -> None:
    side = _side(tiny_checkpoint, steps=3)
    expected = _greedy(tiny_checkpoint, random_ids(2, 9, side.vocab_size), 4)
    first = side.decode(9, 2)
    assert first["tokens"] == expected
    assert first["seconds"] > 0
    assert side.decode(9, 2, steps=2)["tokens"] == [row[:3] for row in expected], "the cache was not rewound"
    read = side.prefill(9, 2)
    assert read["tokens"] == [row[0] for row in expected]
    assert read["sparing"], "of the last layer it computes what the next token needs"
    answer = RefdiffSide(side.settings).memory(size=9, batch=2)
    assert answer["tokens"] == expected
    assert answer["bytes"] > 10_000_000


@pytest.mark.parametrize("edit", [False, True])
def test_lookup_repeats_its_prompt_in_few_passes(
    edit: bool, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, calls = _side(tiny_checkpoint, looked_up=50), []
    forward = type(side.model).__call__

    def counted(self: object, ids: np.ndarray, **given: object) -> object:
        calls.append(ids.shape[1])
        return forward(self, ids, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(type(side.model), "__call__", counted)
    answer = side.edit() if edit else side.lookup()
    text = (edited if edit else repetition)(LOOKUP_PROMPT, 51, side.vocab_size)[1]
    assert answer["tokens"] == [text.tolist()]
    assert answer["passes"] == len(calls) - 1, "all but the first, which reads the prompt"
    assert answer["passes"] <= (50 / 2 if edit else 50 / 5)
    assert calls[0] == LOOKUP_PROMPT


@pytest.mark.parametrize("size", [9, 300])
def test_the_cache_is_as_large_as_that_of_generate(
    size: int, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = _side(tiny_checkpoint, steps=5)
    caches: list[KVCache] = []
    made = KVCache.__init__

    def noted(self: KVCache, *given: object, **options: object) -> None:
        caches.append(self)
        made(self, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(KVCache, "__init__", noted)
    side.decode(size, 2, steps=1)
    side.decode(size, 2)
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
    for size in (1, 4):
        RefdiffSide(Settings(None, Tuning.python_threads + 1, least=0)).product(size, (2048, 2048))
    assert seen == [False, True]


def test_training_goes_down(tiny_checkpoint: Path) -> None:
    side = RefdiffSide(Settings(str(tiny_checkpoint), batch=2, context=11))
    losses = [side.train()["loss"] for _ in range(4)]
    ids = random_ids(2, 11, 259)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint)
    assert losses[0] == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-5)  # type: ignore[arg-type]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.01


def test_weights_of_sixteen_bits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`stored` keeps them; --dtype bfloat16 does too, and refuses a checkpoint that has another type."""
    refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path, dtype="bfloat16")
    answers = []
    for kind, dtype, nbytes in ((RefdiffSide, "float32", 4), (StoredSide, "float32", 2), (RefdiffSide, "bfloat16", 2)):
        side = kind(Settings(str(tmp_path), 1, dtype, steps=3))
        side.load()
        assert side.model.params["model"]["layers"][0]["mlp"]["gate_proj"]["weight"].dtype.itemsize == nbytes
        answers.append(side.decode(9, 2))
        assert answers[-1]["itemsize"] == nbytes
    assert answers[0]["tokens"] == answers[1]["tokens"]
    said = "--dtype bfloat16 measures matrices as they are stored, but here they are float32"
    with pytest.raises(ValueError, match=said):
        RefdiffSide(Settings(str(tiny_checkpoint), 1, "bfloat16")).load()
