"""What is measured, by a side whose steps take known times, and the texts that it is measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refdiff.bench import side as module
from refdiff.bench.inputs import PATTERN, edited, random_ids
from refdiff.bench.side import LOOKUP_PROMPT, Arrivals, Settings, Side

from .fakes import FakeSide


def test_the_clock_runs_until_the_device_is_done() -> None:
    """Before the work it waits too, so that what was begun earlier is not counted: 0.5 s not counted, 0.5 s counted."""
    side = FakeSide()

    def work() -> str:
        side.now += 3
        return "result"

    assert side.timed(work) == (3.5, "result")
    assert side.now == 104.0


def test_load_and_prefill() -> None:
    side = FakeSide()
    assert side.load() == {"seconds": 7.5}
    answer = side.prefill(size=6, batch=3)
    opened, (_, ids, new) = side.did
    assert (opened, new) == (("open", "somewhere"), 1)
    np.testing.assert_array_equal(ids, random_ids(3, 6, 11))
    assert answer == {"seconds": 5.5, "sparing": False, "tokens": ids[:, -1].tolist()}


def test_decoding_reads_its_context_once_and_does_not_count_it() -> None:
    side = FakeSide(Settings(steps=3))
    assert side.decode(size=6, batch=2, steps=1)["seconds"] == 2 + 0.5
    assert (side.did[0][0], side.did[0][2]) == ("start", 4), "the cache has room for the steps that count"
    side.did.clear()
    answer = side.decode(size=6, batch=2)
    assert [name for name, _ in side.did] == ["rewind", "step", "step", "step"]
    assert side.did[0] == ("rewind", 6)
    assert answer["seconds"] == 3 * 2 + 0.5
    last = random_ids(2, 6, 11)[:, -1]
    np.testing.assert_array_equal(answer["tokens"], (last[:, None] + np.arange(4)) % 11)


def test_prompt_lookup_repeats_its_prompt_and_is_timed_after_the_first_token() -> None:
    side = FakeSide()
    side.vocab_size = 50
    answer = side.lookup(steps=4)
    ((_, ids),) = side.did
    assert ids.shape == (1, LOOKUP_PROMPT)
    pattern = ids[0, :PATTERN].tolist()
    assert len(set(pattern)) == PATTERN
    np.testing.assert_array_equal(ids[0, PATTERN:-1], ids[0, : -PATTERN - 1])
    assert ids[0, -1] not in pattern, "what follows it could be guessed before the first token"
    assert answer == {"seconds": 2 * 2 + 0.5, "passes": 2, "tokens": [pattern[:5]]}


def test_an_edit_is_made_of_its_prompt() -> None:
    side = FakeSide(Settings(looked_up=30))
    side.vocab_size = 1000
    answer = side.edit()
    ((_, ids),) = side.did
    prompt, text = edited(LOOKUP_PROMPT, 31, 1000)
    np.testing.assert_array_equal(ids, prompt)
    assert answer == {"seconds": 15 * 2 + 0.5, "passes": 15, "tokens": [text.tolist()]}


def test_lookup_that_gives_another_text_or_guesses_too_early_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    side = FakeSide()
    right = side.by_lookup
    monkeypatch.setattr(side, "by_lookup", lambda *given: right(*given)[:, ::-1])
    with pytest.raises(ValueError, match="the text is not what the bias forces"):
        side.lookup(steps=4)
    monkeypatch.setattr(Arrivals, "put", lambda self, value: (self.times.append(0.0), self.counts.append(2)))
    with pytest.raises(ValueError, match="2 tokens came first and not one"):
        FakeSide().lookup(steps=4)


def test_memory_is_that_of_opening_reading_and_decoding() -> None:
    side = FakeSide(Settings("somewhere", steps=2))
    answer = side.memory(size=6, batch=1)
    assert [name for name, *_ in side.did] == ["open", "start", "step", "step"]
    assert answer["bytes"] > 1_000_000
    assert len(answer["tokens"][0]) == 3
    assert set(Side(Settings()).peak()) == {"bytes", "own_bytes"}


def test_products_go_on_for_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two weights of 0.25 s each: a pass takes 0.5 s, so 1.1 s need three; 1.5 s and the wait are over six products."""
    monkeypatch.setattr(module, "CACHES", 2 * 4 * 3 * 5)
    side = FakeSide(Settings(least=1.1))
    answer = side.product(2, (3, 5))
    assert answer["seconds"] == pytest.approx(2.0 / 6)
    weight = np.random.default_rng(0).standard_normal((3, 5), np.float32)
    x = np.random.default_rng(1).standard_normal((2, 5), np.float32)
    np.testing.assert_allclose(answer["sample"], (x.astype(np.float64) @ weight.T)[-1], rtol=1e-5)
    assert side.product(2, (3, 5)) == answer
    monkeypatch.setattr(module, "CACHES", 1)
    assert FakeSide(Settings(least=0)).product(2, (3, 5))["seconds"] == pytest.approx(0.75)


def test_training_makes_its_step_once(tiny_checkpoint: Path) -> None:
    side = FakeSide(Settings(str(tiny_checkpoint), batch=2, context=5))
    for _ in range(2):
        answer = side.train()
        assert (answer["seconds"], answer["loss"]) == (3.5, 1.5)
        assert answer["bytes"] > 1_000_000
    ((_, folder, ids),) = side.did
    assert folder == str(tiny_checkpoint)
    np.testing.assert_array_equal(ids, random_ids(2, 5, 259))


def test_an_edit_says_most_of_its_prompt_again() -> None:
    prompt, text = edited(256, 129, 50_000)
    assert prompt.shape == (1, 256)
    assert prompt[0, -1] not in [*prompt[0, :-1], *text], "what follows it could be guessed before the first token"
    changed = prompt[0, :129] != text
    assert changed.sum() == 14
    for before in set(prompt[0, :129][changed].tolist()):  # a name changes everywhere, always into the same
        assert len(set(text[prompt[0, :129] == before].tolist())) == 1
